"""The peer of the training step: stock Megatron-core's model, wrapper, optimizer and schedule."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from xelm_nemo import parallel
from xelm_nemo.model.config import ModelConfig, ParallelConfig, SparseConfig, padded_vocab_size
from xelm_nemo.model.stages import stage_layers


def stock_step(
    shape: ModelConfig,
    layout: ParallelConfig,
    fp8_recipe: str | None,
    tokens_BS: torch.Tensor,
    num_micro_batches: int,
    *,
    vocab_size: int,
    balanced: bool,
) -> Callable[[], float]:
    """A function that does one step on these tokens [B, S + 1] and gives its loss.

    Args:
        shape: of the model.
        layout: of its ranks.
        fp8_recipe: Megatron's word; None: BF16.
        tokens_BS: every micro-batch.
        num_micro_batches: of a step.
        vocab_size: before padding.
        balanced: whether pipeline stages have our numbers of layers and not Megatron's equal ones.
    """
    config = _config(shape, layout, fp8_recipe, vocab_size if balanced else None)
    model = _model(config, shape, padded_vocab_size(vocab_size, layout.tensor_model_parallel_size))
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam", lr=1e-4, bf16=True, params_dtype=torch.bfloat16,
            use_distributed_optimizer=True, clip_grad=1.0,
        ),
        [model],
    )  # fmt: skip
    config.finalize_model_grads_func, config.grad_scale_func = finalize_model_grads, optimizer.scale_loss
    inputs, labels = tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous()
    batch_size, length = inputs.shape
    positions = torch.arange(length, device=inputs.device)[None].expand(batch_size, -1)

    def forward(_: Any, model: Any) -> Any:
        loss = model(inputs, positions, None, labels=labels)
        return loss, lambda t: (t.float().mean(), t.detach().float().mean())

    def step() -> float:
        model.zero_grad_buffer()
        optimizer.zero_grad()
        losses = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=None, model=[model], num_microbatches=num_micro_batches,
            seq_length=length, micro_batch_size=batch_size, forward_only=False,
        )  # fmt: skip
        optimizer.step()
        loss = torch.stack(losses).mean() if losses else torch.zeros((), device=inputs.device)
        return float(parallel.share_from_last_stage(loss))

    return step


def _config(
    shape: ModelConfig, layout: ParallelConfig, fp8_recipe: str | None, balanced_for: int | None
) -> TransformerConfig:
    fp8 = {"fp8": "hybrid", "fp8_recipe": fp8_recipe, "fp8_param": True} if fp8_recipe else {}
    stages: dict[str, int] = {}
    num_stages = layout.pipeline_model_parallel_size
    if balanced_for is not None and num_stages > 1:
        first, *_, last = stage_layers(shape, balanced_for, num_stages)
        stages = {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}
    return TransformerConfig(
        num_layers=shape.num_layers, hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size, num_attention_heads=shape.num_attention_heads,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=num_stages, sequence_parallel=layout.sequence_parallel,
        bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16,
        hidden_dropout=shape.hidden_dropout, attention_dropout=shape.attention_dropout,
        gradient_accumulation_fusion=False, cross_entropy_loss_fusion=True, cross_entropy_fusion_impl="te",
        **fp8, **stages, **_fusions(shape),
    )  # fmt: skip


def _fusions(shape: ModelConfig) -> dict[str, Any]:
    """What Megatron fuses: with moe_experts that have biases neither of the two."""
    if not isinstance(shape, SparseConfig):
        return {"bias_activation_fusion": True, "bias_dropout_fusion": True}
    return {
        "bias_activation_fusion": False, "bias_dropout_fusion": False,
        "num_moe_experts": shape.num_moe_experts, "moe_router_topk": shape.moe_router_topk,
        "moe_layer_freq": [int(layer in shape.moe_layers) for layer in range(shape.num_layers)],
        "moe_ffn_hidden_size": shape.ffn_hidden_size, "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": shape.moe_aux_loss_coeff,
        "moe_expert_capacity_factor": shape.moe_expert_capacity_factor,
        "moe_token_dispatcher_type": "alltoall", "moe_grouped_gemm": True, "moe_permute_fusion": True,
    }  # fmt: skip


def _layers(config: TransformerConfig) -> Any:
    if config.num_moe_experts is None:
        return get_gpt_layer_with_transformer_engine_spec()
    return get_gpt_decoder_block_spec(config, use_transformer_engine=True)


def _model(config: TransformerConfig, shape: ModelConfig, padded_size: int) -> DistributedDataParallel:
    from megatron.core.fp8_utils import get_fp8_context

    fp8 = bool(config.fp8)
    with get_fp8_context(config, 0, is_init=True) if fp8 else contextlib.nullcontext():
        model = GPTModel(
            config=config, transformer_layer_spec=_layers(config),
            vocab_size=padded_size, max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=True, position_embedding_type="learned_absolute",
        ).cuda()  # fmt: skip
    has_peers = dist.get_world_size(parallel_state.get_data_parallel_group()) > 1
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=True, fp8_param_gather=fp8,
        overlap_grad_reduce=has_peers, overlap_param_gather=has_peers,
    )  # fmt: skip
    wrapped = DistributedDataParallel(config, settings, Float16Module(config, model))
    if has_peers:
        config.no_sync_func = wrapped.no_sync
    return wrapped
