"""XGLM and OPT on Megatron-core's GPTModel. The only file that builds one."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from xelm_nemo import device, parallel
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import NO_FP8, FP8Config, ModelConfig, ParallelConfig, padded_vocab_size
from xelm_nemo.model.documents import end_to_end
from xelm_nemo.model.embedding import WordEmbedding
from xelm_nemo.model.fp8_state import forget_largest
from xelm_nemo.model.head import Head
from xelm_nemo.model.layers import NO_FP8_HERE, block_spec, has_fp8, has_transformer_engine, replicated_linear
from xelm_nemo.model.moe import mend_layers
from xelm_nemo.model.positions import POSITION_OFFSET, learned_positions, sinusoidal_positions
from xelm_nemo.model.transformer import transformer_config


class DecoderModel(GPTModel):
    """A decoder with a tied head, shaped as XGLM or as OPT.

    Its input is E[token] * sqrt(hidden_size) + sinusoid for XGLM, and E[token] + P[position] for OPT;
    no dropout follows it, as in the runs of X-ELM and c-BTM. Where embeddings are narrower than layers
    (OPT-350M), `project_in` and `project_out` lie between. Columns of the head beyond `real_vocab_size`
    are padding: they take no part in the loss and are cut from `logits`.

    Called with `labels` [B, S] it gives the loss of each token, float32 [B, S], and has no logits in memory.
    `loss_mask`, if given, is the gradient that backward will bring to each loss. `position_ids`, int64 [B, S]
    from 0 on, are those of the tokens; None: 0, 1, ...
    """

    def __init__(
        self, config: TransformerConfig, shape: ModelConfig, vocab_size: int, *, fp8_head: bool = False
    ) -> None:
        """Build this rank's part of the model; parallel state must be initialised."""
        super().__init__(
            config=config,
            transformer_layer_spec=block_spec(
                config, transformer_engine=has_transformer_engine(), post_layernorm=shape.post_layernorm
            ),
            vocab_size=padded_vocab_size(vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel.is_first_stage(),
            post_process=parallel.is_last_stage(),
            share_embeddings_and_output_weights=True,
            position_embedding_type="none",  # ours are added in _preprocess
        )
        if self.post_process:
            self.output_layer.__class__ = Head  # GPTModel builds Megatron's and takes no other
        if self.pre_process:
            self.embedding.word_embeddings.__class__ = WordEmbedding
        if config.num_moe_experts is not None:
            mend_layers(self)
        self.shape = shape
        self.real_vocab_size, self.fp8_head = vocab_size, fp8_head
        self.project_in: torch.nn.Linear | None = None
        self.project_out: torch.nn.Linear | None = None
        if shape.word_embed_proj_dim is not None:
            self._narrow_embedding(shape.word_embed_proj_dim)
        if self.pre_process:
            self._add_positions()

    def _narrow_embedding(self, width: int) -> None:
        """Replace the embedding and the head, which GPTModel makes as wide as its layers."""
        narrow = copy.copy(self.config)
        narrow.hidden_size = width
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                narrow,
                self.vocab_size,
                self.max_sequence_length,
                position_embedding_type="none",
                tp_group=self.pg_collection.tp,
            )
            self.embedding.word_embeddings.__class__ = WordEmbedding
            self.project_in = replicated_linear(self.config, width, self.config.hidden_size)
        if self.post_process:
            self.output_layer = Head(
                width,
                self.vocab_size,
                config=narrow,
                init_method=narrow.init_method,
                bias=False,
                skip_weight_param_allocation=self.pre_process,
                tp_group=self.pg_collection.tp,
            )
            self.project_out = replicated_linear(self.config, self.config.hidden_size, width)
        self.setup_embeddings_and_output_layer()  # ties the new ones

    def setup_embeddings_and_output_layer(self) -> None:
        """Tie the head to the embedding; each adds its gradient by itself."""
        super().setup_embeddings_and_output_layer()
        if self.pre_process or self.post_process:
            self.shared_embedding_or_output_weight().zero_out_wgrad = False

    def _add_positions(self) -> None:
        length = self.shape.max_position_embeddings
        if self.shape.architecture == "opt":
            self.embedding.position_embeddings = learned_positions(self.config, length)
        else:
            # Not a buffer: it is computed, not learned, and stays float32 when the model is cast.
            table = sinusoidal_positions(length, self.config.hidden_size)
            self.sinusoids_SH = table.to(device.device())

    def _preprocess(
        self, input_ids: torch.Tensor, position_ids: Any, decoder_input: Any = None, **kwargs: Any
    ) -> Any:
        if self.pre_process and decoder_input is None:
            decoder_input = self._embed(input_ids, position_ids)
        return super()._preprocess(input_ids, position_ids, decoder_input, **kwargs)

    def _postprocess(
        self,
        hidden_states: torch.Tensor,
        *,
        labels: torch.Tensor | None,
        loss_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if self.project_out is not None:
            hidden_states = self.project_out(hidden_states)
        if labels is not None and self.post_process:
            weight = self.shared_embedding_or_output_weight()
            options = {"vocab_size": self.real_vocab_size, "grad_BS": loss_mask, "fp8": self.fp8_head}
            output: torch.Tensor = self.output_layer(hidden_states, weight, labels=labels, **options)
        else:
            output = super()._postprocess(hidden_states, labels=None, **kwargs)
        return output

    def _embed(self, tokens_BS: torch.Tensor, position_BS: torch.Tensor | None) -> torch.Tensor:
        """[S, B, H], or this rank's slice of S under sequence parallelism."""
        words: torch.Tensor = self.embedding.word_embeddings(tokens_BS)
        if not self.config.sequence_parallel:  # else they are [S / tp, B, H] already
            words = words.transpose(0, 1).contiguous()
        if self.project_in is not None:
            words = self.project_in(words)
        positions = self._positions(tokens_BS.shape[1], position_BS)
        if self.shape.architecture == "opt":
            return words + positions
        embedded = words.float() * math.sqrt(self.config.hidden_size) + positions
        return embedded.to(words.dtype)

    def _positions(self, length: int, position_BS: torch.Tensor | None) -> torch.Tensor:
        """What is added to the tokens, [S, 1, H] or [S, B, H], or this rank's slice of S."""
        if position_BS is None and self.shape.architecture == "xglm":
            return self._slice(self.sinusoids_SH[:length, None])  # a view: no copy of the table
        if position_BS is None:
            position_BS = torch.arange(length, device=device.device())[None]
        row_SB = self._slice(position_BS.t())
        if self.shape.architecture == "xglm":
            return self.sinusoids_SH[row_SB]
        # Called, for Megatron may have to wait for its weights first.
        learned: torch.Tensor = self.embedding.position_embeddings(POSITION_OFFSET + row_SB)
        return learned

    def _slice(self, x_S: torch.Tensor) -> torch.Tensor:
        """This rank's slice of a sequence: all of it without sequence parallelism."""
        if not self.config.sequence_parallel:
            return x_S
        own: torch.Tensor = x_S.chunk(self.pg_collection.tp.size())[self.pg_collection.tp.rank()]
        return own

    def logits(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Next-token logits [B, S, V] of the real vocabulary, on every tensor-parallel rank."""
        logits: torch.Tensor = gather_from_tensor_model_parallel_region(self(tokens_BS, None, None))
        return logits[..., : self.real_vocab_size]

    def target_log_prob(
        self, tokens_BS: torch.Tensor, target_BS: torch.Tensor, lengths: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probability of the target of each token, float32 [B, S], without logits in memory.

        With `lengths`, texts of such lengths lie end to end in the one row; each is read as if alone.
        """
        apart = {"position_ids": None, "attention_mask": None} if lengths is None else end_to_end(lengths)
        loss_BS: torch.Tensor = self(tokens_BS, labels=target_BS, **apart)
        return -loss_BS


def build_model(
    shape: ModelConfig,
    layout: ParallelConfig,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    fp8: FP8Config = NO_FP8,
    grouped: bool = True,
) -> DecoderModel:
    """This rank's part of a freshly initialised model, on the device and in `dtype`.

    The settings are those of `transformer_config`.

    Raises:
        ConfigError: as `transformer_config`, or FP8 is asked for where there is none.
    """
    config = transformer_config(shape, layout, vocab_size=vocab_size, dtype=dtype, fp8=fp8, grouped=grouped)
    if fp8.is_used and not has_fp8():
        raise ConfigError(f"{NO_FP8_HERE}.")
    model = DecoderModel(config, shape, vocab_size, fp8_head=fp8.head)
    model.to(device.device(), dtype)
    if fp8.param_gather:
        forget_largest(model)
    return model
