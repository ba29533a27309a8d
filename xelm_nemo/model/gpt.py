"""XGLM on Megatron-core's GPTModel. The only file that builds one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from xelm_nemo import device, parallel
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ModelConfig, ParallelConfig, layout_problems
from xelm_nemo.model.layers import block_spec, has_transformer_engine
from xelm_nemo.model.positions import sinusoidal_positions

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}  # F.gelu is the exact erf form, as in HF and fairseq
VOCAB_MULTIPLE = 128  # what tensor cores and FP8 want of each tensor-parallel rank's share


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    """The vocabulary rounded up to a multiple of 128 for every tensor-parallel rank."""
    multiple = VOCAB_MULTIPLE * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


class XglmModel(GPTModel):
    """Pre-LN decoder with XGLM's embedding: sqrt(hidden_size) * E[token] + sinusoid, and a tied head.

    Columns of the head beyond `real_vocab_size` are padding: they take no part in the loss and are cut
    from `logits`. No dropout follows the embedding, as in X-ELM's training runs.
    """

    def __init__(self, config: TransformerConfig, shape: ModelConfig, vocab_size: int) -> None:
        """Build this rank's part of the model; parallel state must be initialised."""
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(config, transformer_engine=has_transformer_engine()),
            vocab_size=padded_vocab_size(vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel.is_first_stage(),
            post_process=parallel.is_last_stage(),
            share_embeddings_and_output_weights=True,
            position_embedding_type="none",  # ours are added in _preprocess
        )
        self.shape = shape
        self.real_vocab_size = vocab_size
        # Not a buffer: it is computed, not learned, and stays float32 when the model is cast.
        table = sinusoidal_positions(shape.max_position_embeddings, shape.hidden_size)
        self.positions_SH = table.to(device.device()) if self.pre_process else None

    def _preprocess(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, decoder_input: Any = None, **kwargs: Any
    ) -> Any:
        if self.pre_process and decoder_input is None:
            decoder_input = self._embed(input_ids)
        return super()._preprocess(input_ids, position_ids, decoder_input, **kwargs)

    def _embed(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """[S, B, H], or this rank's slice of S under sequence parallelism."""
        words: torch.Tensor = self.embedding.word_embeddings(tokens_BS)
        assert self.positions_SH is not None  # this is the first stage
        positions = self.positions_SH[: tokens_BS.shape[1]]
        if self.config.sequence_parallel:  # then words are already [S / tp, B, H]
            positions = positions.chunk(self.pg_collection.tp.size())[self.pg_collection.tp.rank()]
        else:
            words = words.transpose(0, 1).contiguous()
        embedded = words.float() * math.sqrt(self.config.hidden_size) + positions[:, None, :]
        return embedded.to(words.dtype)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each target, float32 [B, S]; logits [S, B, V / tp] of the padded vocabulary."""
        loss: torch.Tensor = super().compute_language_model_loss(labels, self._mask_padding(logits))
        return loss

    def _mask_padding(self, logits: torch.Tensor) -> torch.Tensor:
        width = logits.shape[-1]
        real = self.real_vocab_size - width * self.pg_collection.tp.rank()
        if real >= width:
            return logits
        column = torch.arange(width, device=logits.device)
        return logits.masked_fill(column >= real, -torch.inf)

    def logits(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Next-token logits [B, S, V] of the real vocabulary, on every tensor-parallel rank."""
        logits: torch.Tensor = gather_from_tensor_model_parallel_region(self(tokens_BS, None, None))
        return logits[..., : self.real_vocab_size]


def transformer_config(shape: ModelConfig, layout: ParallelConfig, dtype: torch.dtype) -> TransformerConfig:
    """The shape in Megatron's terms, with the numerics of HF's XGLM.

    Raises:
        ConfigError: names every size that does not divide as the layout needs it.
    """
    problems = layout_problems(shape, layout)
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        layernorm_epsilon=shape.layernorm_epsilon,
        init_method_std=shape.init_method_std,
        hidden_dropout=shape.hidden_dropout,
        attention_dropout=shape.attention_dropout,
        activation_func=ACTIVATIONS[shape.activation],
        bias_activation_fusion=False,  # Megatron's fused GELU is the tanh form
        bias_dropout_fusion=False,
        attention_softmax_in_fp32=True,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        use_cpu_initialization=not device.has_cuda(),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        gradient_accumulation_fusion=False,
    )


def build_model(
    shape: ModelConfig, layout: ParallelConfig, *, vocab_size: int, dtype: torch.dtype
) -> XglmModel:
    """This rank's part of a freshly initialised model, on the device and in `dtype`."""
    model = XglmModel(transformer_config(shape, layout, dtype), shape, vocab_size)
    model.to(device.device(), dtype)
    return model
