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
