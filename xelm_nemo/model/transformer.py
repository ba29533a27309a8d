"""Our settings in Megatron's terms."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import TransformerConfig

from xelm_nemo import device
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import (
    NO_FP8,
    FP8Config,
    ModelConfig,
    ParallelConfig,
    SparseConfig,
    layout_problems,
)
from xelm_nemo.model.layers import has_transformer_engine
from xelm_nemo.model.sparse import sparse_problems
from xelm_nemo.model.stages import stage_layers

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}  # F.gelu is the exact erf form, as in HF and fairseq


def transformer_settings(shape: ModelConfig) -> dict[str, Any]:
    """The shape in Megatron's terms, with the numerics of HF's XGLM and OPT."""
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "layernorm_epsilon": shape.layernorm_epsilon,
        "init_method_std": shape.init_method_std,
        "hidden_dropout": shape.hidden_dropout,
        "attention_dropout": shape.attention_dropout,
        "activation_func": ACTIVATIONS[shape.activation],
        "bias_activation_fusion": False,  # Megatron's fused GELU is the tanh form
        "bias_dropout_fusion": device.has_cuda() and shape.hidden_dropout > 0,
        "attention_softmax_in_fp32": True,
        "gradient_accumulation_fusion": False,
    }


def transformer_config(
    shape: ModelConfig,
    layout: ParallelConfig,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    fp8: FP8Config = NO_FP8,
    grouped: bool = True,
) -> TransformerConfig:
    """Megatron's configuration of a model of this shape, divided so.

    Args:
        shape: of the model.
        layout: of its ranks.
        vocab_size: before padding.
        dtype: of the weights.
        fp8: which products are in FP8.
        grouped: whether moe_experts compute together, where Transformer Engine can.

    Raises:
        ConfigError: names every setting that does not fit the others or the layout.
    """
    problems = layout_problems(shape, layout) + sparse_problems(shape, layout)
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return TransformerConfig(
        **transformer_settings(shape),
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        use_cpu_initialization=not device.has_cuda(),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        **_stages(shape, vocab_size, layout.pipeline_model_parallel_size),
        **_recompute(layout.recompute_granularity),
        **_fp8(fp8),
        **_moe(shape, layout, grouped=grouped),
    )


def _stages(shape: ModelConfig, vocab_size: int, num_stages: int) -> dict[str, Any]:
    if num_stages == 1:
        return {}
    first, *_, last = stage_layers(shape, vocab_size, num_stages)
    return {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}


def _moe(shape: ModelConfig, layout: ParallelConfig, *, grouped: bool) -> dict[str, Any]:
    if not isinstance(shape, SparseConfig):
        return {}
    pattern = [int(layer in shape.moe_layers) for layer in range(shape.num_layers)]
    return {
        "num_moe_experts": shape.num_moe_experts,
        "moe_layer_freq": pattern if shape.moe_layer_freq > 1 else 1,
        "moe_ffn_hidden_size": shape.ffn_hidden_size,
        "moe_router_topk": shape.moe_router_topk,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": shape.moe_aux_loss_coeff,
        "moe_expert_capacity_factor": shape.moe_expert_capacity_factor,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": grouped and has_transformer_engine(),
        "moe_permute_fusion": has_transformer_engine() and _can_permute_at_once(),
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "expert_tensor_parallel_size": 1,  # Megatron's moe_experts have biases only when they are whole
    }


def _can_permute_at_once() -> bool:
    """Whether Megatron finds Transformer Engine's kernels that bring tokens to moe_experts and back."""
    names = ("permute_with_probs", "sort_chunks_by_index_with_probs", "unpermute")
    return all(getattr(moe_utils, f"fused_{name}", None) is not None for name in names)


def _recompute(granularity: str | None) -> dict[str, Any]:
    each_layer = {"recompute_method": "uniform", "recompute_num_layers": 1} if granularity == "full" else {}
    return {"recompute_granularity": granularity, **each_layer}


def _fp8(fp8: FP8Config) -> dict[str, Any]:
    if fp8.recipe is None:
        return {}
    # Delayed scaling as Transformer Engine has it by default; Megatron's one step of history is not it.
    history = {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    return {
        "fp8": "hybrid",
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.param_gather,
        "first_last_layers_bf16": fp8.first_last_layers_bf16,
        **(history if fp8.recipe == "delayed" else {}),
    }
