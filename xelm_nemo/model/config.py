"""Settings of a language model: its shape and its number format."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = ("xglm", "opt")
ACTIVATIONS = ("gelu", "relu")
FP8_MULTIPLE = 16  # what FP8 products want of every size
MOST_LAYERS = 10_000  # more is damage, and takes long to find out otherwise
OPTIMIZER_BYTES = 12  # of a weight in a training state: float32 and Adam's two means
VOCAB_MULTIPLE = 128  # what tensor cores and FP8 want of each tensor-parallel rank's share


@dataclass(frozen=True)
class ModelConfig:
    """A decoder shaped as XGLM or OPT. Defaults are XGLM-1.7B's; names are Megatron's where it has one."""

    architecture: str = (
        "xglm"  # sinusoids and embeddings scaled by sqrt(hidden_size); "opt": learned positions
    )
    num_layers: int = 24
    hidden_size: int = 2048
    ffn_hidden_size: int = 8192
    num_attention_heads: int = 16
    activation: str = "gelu"  # exact erf GELU, or "relu" (OPT, XGLM-4.5B)
    max_position_embeddings: int = 2048
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    post_layernorm: bool = False  # norms after attention and feed-forward, none at the end (OPT-350M)
    word_embed_proj_dim: int | None = None  # width of narrower embeddings (OPT-350M); None: hidden_size


@dataclass(frozen=True)
class SparseConfig(ModelConfig):
    """A decoder of which every so many layers has several feed-forward parts, moe_experts, and a gate.

    The names are Megatron's. A gate gives each token to its best `moe_router_topk` moe_experts, whose outputs
    are summed with the softmax of their gates' values.
    """

    num_moe_experts: int = 8
    moe_layer_freq: int = 2  # the last of every so many layers has them
    moe_router_topk: int = 2
    # Most tokens of a micro-batch that a moe_expert takes in training, in shares of tokens x topk / experts;
    # those whose gate is smallest are left out. None: it takes all.
    moe_expert_capacity_factor: float | None = None
    moe_aux_loss_coeff: float = 0.01  # of the loss that draws gates towards equal use

    @property
    def dense(self) -> ModelConfig:
        """The shape without moe_experts."""
        return ModelConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        )

    @property
    def moe_layers(self) -> list[int]:
        """The layers that have moe_experts, counted from 0: 1, 3, 5, ... where every second one has."""
        return list(range(self.moe_layer_freq - 1, self.num_layers, self.moe_layer_freq))


def shape_from(values: Mapping[str, Any]) -> ModelConfig:
    """The shape whose settings these are.

    Raises:
        TypeError: there is no such setting.
    """
    return SparseConfig(**values) if "num_moe_experts" in values else ModelConfig(**values)


# What a model of the same weights may be trained with, one time so and another time so.
NOT_SIZES = frozenset(
    {"hidden_dropout", "attention_dropout", "moe_expert_capacity_factor", "moe_aux_loss_coeff"}
)

# Settings younger than the first models on disk, with the values that those have.
_YOUNGER = {"architecture": "xglm", "post_layernorm": False, "word_embed_proj_dim": None}


def recorded_settings(shape: ModelConfig) -> dict[str, Any]:
    """A shape as recipes record it: what older ones leave unsaid is left unsaid, and so they stay current."""
    settings = dataclasses.asdict(shape)
    return {key: value for key, value in settings.items() if key not in _YOUNGER or value != _YOUNGER[key]}


@dataclass(frozen=True)
class FP8Config:
    """Which matrix products of training are in FP8."""

    recipe: str | None = None  # scales in layers: "delayed", "tensorwise", "blockwise"; None: layers in BF16
    first_last_layers_bf16: bool = False  # the first and the last layer stay in BF16
    head: bool = False  # the head's three products, each tensor with one scale of its own
    param_gather: bool = False  # layers' matrices are kept and exchanged in FP8, beside float32 masters

    @property
    def is_used(self) -> bool:
        """Whether any product is in FP8."""
        return self.recipe is not None or self.head


NO_FP8 = FP8Config()


@dataclass(frozen=True)
class PrecisionConfig:
    """The number format of training."""

    params_dtype: str = "auto"  # "fp32", "bf16", or "auto": bf16 on a GPU, fp32 on a CPU
    fp8: FP8Config = field(default_factory=FP8Config)


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is divided over ranks; names are Megatron's."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    recompute_granularity: str | None = None  # "selective": attention again in backward; "full": layers
    expert_model_parallel_size: int = 1  # ranks, data-parallel ones among them, that share moe_experts

    @property
    def num_ranks(self) -> int:
        """Processes that train one model."""
        model = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        return model * self.data_parallel_size


def fp8_problems(
    shape: ModelConfig, layout: ParallelConfig, precision: PrecisionConfig, tokens: int
) -> list[str]:
    """Why products cannot be in FP8 as asked; nothing when they can, or are not to be.

    Args:
        shape: of the model.
        layout: of its ranks.
        precision: what is asked for.
        tokens: of a micro-batch.
    """
    fp8, tp = precision.fp8, layout.tensor_model_parallel_size
    problems = []
    if fp8.first_last_layers_bf16 and fp8.recipe in (None, "delayed"):
        problems.append(
            f"precision.fp8.first_last_layers_bf16=true does not go with precision.fp8.recipe={fp8.recipe}; "
            "use tensorwise or blockwise"
        )
    if fp8.param_gather and fp8.recipe is None:
        problems.append(
            "precision.fp8.param_gather=true keeps layers' weights in FP8, and precision.fp8.recipe=None has "
            "none there; use delayed, tensorwise or blockwise"
        )
    if not fp8.is_used:
        return problems
    if precision.params_dtype == "fp32":
        problems.append("precision.params_dtype=fp32 does not go with precision.fp8; use bf16")
    sizes = {
        "training.micro_batch_size x training.seq_length": tokens,
        "model.hidden_size": shape.hidden_size,
        "model.ffn_hidden_size": shape.ffn_hidden_size,
    }
    problems += [
        f"{name}={size} is no multiple of {FP8_MULTIPLE * tp}, as precision.fp8 needs at "
        f"parallel.tensor_model_parallel_size={tp}"
        for name, size in sizes.items()
        if size % (FP8_MULTIPLE * tp)
    ]
    return problems


def matrix_elements(shape: ModelConfig) -> int:
    """Elements of a layer's matrices, each of which multiplies every token once."""
    return 4 * shape.hidden_size**2 + 2 * shape.hidden_size * shape.ffn_hidden_size


def moe_elements(shape: ModelConfig) -> int:
    """Weights of one moe_expert, its biases included."""
    return 2 * shape.hidden_size * shape.ffn_hidden_size + shape.ffn_hidden_size + shape.hidden_size


def num_parameters(shape: ModelConfig, vocab_size: int) -> int:
    """Weights of a model, the padding of its vocabulary included."""
    H, F, width = shape.hidden_size, shape.ffn_hidden_size, shape.word_embed_proj_dim or shape.hidden_size
    layer = matrix_elements(shape) + 9 * H + F  # with biases and two norms
    positions = (shape.max_position_embeddings + 2) * H if shape.architecture == "opt" else 0
    projections = 2 * H * width if shape.word_embed_proj_dim else 0
    final_norm = 0 if shape.post_layernorm else 2 * H
    words = padded_vocab_size(vocab_size) * width
    sparse = 0
    if isinstance(shape, SparseConfig):
        added = (shape.num_moe_experts - 1) * moe_elements(shape) + shape.num_moe_experts * H  # with a gate
        sparse = len(shape.moe_layers) * added
    return shape.num_layers * layer + sparse + words + positions + projections + final_norm


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int = 1) -> int:
    """The vocabulary rounded up to a multiple of 128 for every tensor-parallel rank."""
    multiple = VOCAB_MULTIPLE * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


def shape_problems(shape: ModelConfig) -> list[str]:
    """Why there can be no model of this shape; nothing when there can."""
    heads, width = shape.num_attention_heads, shape.word_embed_proj_dim
    problems = []
    if shape.num_layers > MOST_LAYERS:
        problems.append(f"model.num_layers={shape.num_layers} is more than {MOST_LAYERS:,}, as no model has")
    if shape.hidden_size % heads:
        problems.append(
            f"model.num_attention_heads={heads} does not divide model.hidden_size={shape.hidden_size}"
        )
    if shape.architecture == "xglm" and shape.hidden_size % 2:
        problems.append(
            f"model.hidden_size={shape.hidden_size} must be even; XGLM's positions are two halves"
        )
    for key, value in {"post_layernorm": shape.post_layernorm, "word_embed_proj_dim": width}.items():
        if value and shape.architecture != "opt":
            problems.append(
                f"model.{key}={value} needs model.architecture=opt; {shape.architecture!r} has no such form"
            )
    return problems


def layout_problems(shape: ModelConfig, layout: ParallelConfig) -> list[str]:
    """Why a model of this shape cannot be, or be divided so; nothing when it can."""
    tp, pp, heads = (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        shape.num_attention_heads,
    )
    problems = shape_problems(shape)
    if heads % tp:
        fitting = [size for size in range(1, heads + 1) if heads % size == 0]
        problems.append(
            f"parallel.tensor_model_parallel_size={tp} does not divide model.num_attention_heads={heads}; "
            f"use one of {fitting}"
        )
    if shape.ffn_hidden_size % tp:
        problems.append(
            f"parallel.tensor_model_parallel_size={tp} does not divide "
            f"model.ffn_hidden_size={shape.ffn_hidden_size}"
        )
    if shape.num_layers < pp:
        problems.append(
            f"parallel.pipeline_model_parallel_size={pp} is more than model.num_layers={shape.num_layers}; "
            f"every stage takes a layer"
        )
    if layout.sequence_parallel and tp == 1:
        problems.append(
            "parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size of 2 or more"
        )
    return problems
