"""Settings of a language model: its shape and its number format."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """An XGLM-shaped decoder. Defaults are XGLM-1.7B's; names are Megatron's."""

    num_layers: int = 24
    hidden_size: int = 2048
    ffn_hidden_size: int = 8192
    num_attention_heads: int = 16
    activation: str = "gelu"  # exact erf GELU, or "relu" (XGLM-4.5B)
    max_position_embeddings: int = 2048
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1


@dataclass(frozen=True)
class PrecisionConfig:
    """The number format of training."""

    params_dtype: str = "auto"  # "fp32", "bf16", or "auto": bf16 on a GPU, fp32 on a CPU


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is divided over ranks; names are Megatron's."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False


def layout_problems(shape: ModelConfig, layout: ParallelConfig) -> list[str]:
    """Why a model of this shape cannot be divided so; nothing when it can."""
    tp, pp, heads = (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        shape.num_attention_heads,
    )
    problems = []
    if heads % tp:
        fitting = [size for size in range(1, heads + 1) if heads % size == 0]
        problems.append(
            f"parallel.tensor_model_parallel_size={tp} does not divide model.num_attention_heads={heads}; "
            f"use one of {fitting}"
        )
    if shape.hidden_size % heads:
        problems.append(
            f"model.num_attention_heads={heads} does not divide model.hidden_size={shape.hidden_size}"
        )
    if shape.ffn_hidden_size % tp:
        problems.append(
            f"parallel.tensor_model_parallel_size={tp} does not divide "
            f"model.ffn_hidden_size={shape.ffn_hidden_size}"
        )
    if shape.num_layers % pp:
        problems.append(
            f"parallel.pipeline_model_parallel_size={pp} does not divide model.num_layers={shape.num_layers}"
        )
    if layout.sequence_parallel and tp == 1:
        problems.append(
            "parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size of 2 or more"
        )
    return problems
