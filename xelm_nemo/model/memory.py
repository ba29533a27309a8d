"""How much memory a training step takes at its peak, by counting the tensors that are then alive.

On each rank, in bytes, for N weights (of its layers, and of embedding and head where it has them):

    weights      2 N in BF16, 4 N in float32; with FP8's param_gather none for the layers' matrices
    gradients    4 N, the buffer that Megatron sums in
    optimizer    12 N / dp in BF16: float32 weights and Adam's two means; in float32 the means, 8 N / dp
    FP8 copies   2 bytes an element of the layers' matrices: as they are and transposed
    activations  layers x micro-batches in flight x what backward needs of a layer, `_layer_bytes`
    head         the logits of a chunk and their gradient, on the last stage

The peak is taken to be in the head's pass of a micro-batch, when every layer's activations are alive. What a
layer keeps is Korthikanti et al.'s count (arXiv 2205.05198, section 4), without attention scores, which fused
attention does not keep, and with FP8's copies in place of what they stand for.

Left out: CUDA's context and NCCL's buffers (RESERVED_BYTES), cuBLAS's workspaces, fragmentation, gradients
within a layer, `first_last_layers_bf16`. Peaks measured on H100 and H200 were up to 2.5 % above the estimate.

Letters: T tokens of a micro-batch, H hidden, F feed-forward, V one rank's rows of the head.
"""

from dataclasses import dataclass, replace

from xelm_nemo.model.config import (
    OPTIMIZER_BYTES,
    FP8Config,
    ModelConfig,
    ParallelConfig,
    SparseConfig,
    matrix_elements,
    moe_elements,
    num_parameters,
    padded_vocab_size,
)
from xelm_nemo.model.stages import stage_layers

LOGITS_BYTES = 2**31  # of one chunk; twice as many in FP8, where adding to the gradient costs more
RESERVED_BYTES = 2 * 2**30  # of a GPU, for what no tensor holds: CUDA's context and NCCL
MARGIN = 1.15  # by which the estimate may be wrong, so that nothing is refused that would have fitted

Parts = dict[str, float]  # what takes memory -> bytes


@dataclass(frozen=True)
class StepSizes:
    """What the memory of a training step depends on."""

    shape: ModelConfig
    layout: ParallelConfig
    fp8: FP8Config
    dtype: str  # "bf16" or "fp32"
    vocab_size: int
    seq_length: int
    micro_batch_size: int
    num_micro_batches: int  # of a step, on each data-parallel rank

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.micro_batch_size * self.seq_length

    @property
    def element_bytes(self) -> int:
        """Of a weight or an activation."""
        return 2 if self.dtype == "bf16" else 4

    @property
    def share_between_matrices(self) -> float:
        """A rank's part of what lies between matrices: all of it, unless sequence parallelism divides it."""
        return 1 / self.layout.tensor_model_parallel_size if self.layout.sequence_parallel else 1.0


def peak_parts(sizes: StepSizes) -> Parts:
    """What the memory of the fullest rank is taken by."""
    stages = range(sizes.layout.pipeline_model_parallel_size)
    return max((_stage_parts(sizes, stage) for stage in stages), key=lambda parts: sum(parts.values()))


def head_chunk(num_tokens: int, row_bytes: int, *, fp8: bool) -> int:
    """Tokens whose logits are in memory at once, `row_bytes` each.

    Equal chunks, multiples of 256 tokens: every chunk reads and writes the weight's whole gradient.
    """
    num_chunks = -(-num_tokens * row_bytes // (LOGITS_BYTES * (1 + fp8)))
    return -(-num_tokens // num_chunks // 256) * 256


def _stage_parts(sizes: StepSizes, stage: int) -> Parts:
    shape, layout, is_bf16 = sizes.shape, sizes.layout, sizes.dtype == "bf16"
    tp, num_stages = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    layers = stage_layers(shape, sizes.vocab_size, num_stages)[stage]
    has_words, has_head = stage in (0, num_stages - 1), stage == num_stages - 1
    count = _num_weights(sizes, layers, has_words=has_words) / tp
    experts = _num_expert_weights(sizes, layers)
    sharing = layout.data_parallel_size * tp / layout.expert_model_parallel_size  # ranks with the same ones
    state = OPTIMIZER_BYTES if is_bf16 else 8
    matrices = layers * matrix_elements(shape) / tp
    whole = _layer_bytes(sizes)
    kept = _layer_input_bytes(sizes) if layout.recompute_granularity == "full" else whole
    in_flight = min(num_stages - stage, sizes.num_micro_batches)
    parts = {
        "weights": sizes.element_bytes * (count + experts - (matrices if sizes.fp8.param_gather else 0)),
        "gradients": 4 * (count + experts),
        "optimizer": state * (count / layout.data_parallel_size + experts / sharing),
        "FP8 copies": 2 * matrices if sizes.fp8.recipe else 0,
        "activations": layers * in_flight * kept,
        "head": _head_bytes(sizes) if has_head else 0,
    }
    if kept < whole:  # a layer made again is not alive at the same time as the head's chunk
        parts["activations"] += max(0, whole - parts["head"])
    return {name: size for name, size in parts.items() if size}


def _num_weights(sizes: StepSizes, layers: int, *, has_words: bool) -> int:
    """Weights that tensor parallelism divides."""
    dense = sizes.shape.dense if isinstance(sizes.shape, SparseConfig) else sizes.shape
    without = num_parameters(replace(dense, num_layers=0), sizes.vocab_size)
    layer = num_parameters(replace(dense, num_layers=1), sizes.vocab_size) - without
    replaced = _num_sparse(sizes.shape, layers) * moe_elements(dense)
    return layers * layer - replaced + (without if has_words else 0)


def _num_expert_weights(sizes: StepSizes, layers: int) -> int:
    """A rank's weights of moe_experts and gates, which are whole at any tensor parallelism."""
    shape = sizes.shape
    if not isinstance(shape, SparseConfig):
        return 0
    own = shape.num_moe_experts // sizes.layout.expert_model_parallel_size
    gate = shape.num_moe_experts * shape.hidden_size
    return _num_sparse(shape, layers) * (own * moe_elements(shape) + gate)


def _num_sparse(shape: ModelConfig, layers: int) -> int:
    """How many of so many layers, at most, have moe_experts."""
    return -(-layers // shape.moe_layer_freq) if isinstance(shape, SparseConfig) else 0


def _layer_input_bytes(sizes: StepSizes) -> float:
    """What a layer keeps that is made again in backward."""
    return sizes.tokens * sizes.shape.hidden_size * sizes.element_bytes * sizes.share_between_matrices


def _layer_bytes(sizes: StepSizes) -> float:
    """What backward needs of a layer.

    Between matrices, elements of H a token: the inputs of both norms and what they give (in FP8 as one
    byte), and a byte of mask for each dropout. Within them, divided over ranks: queries, keys, values and
    attention's output, H each; the input of the activation, F, and of the matrix after it, F. A ReLU keeps
    its output alone. FP8 matrices keep their inputs as one byte.
    """
    shape, tp, size = sizes.shape, sizes.layout.tensor_model_parallel_size, sizes.element_bytes
    H, F = shape.hidden_size, shape.ffn_hidden_size
    of_matrix = 1 if sizes.fp8.recipe else size
    between = H * (2 * size + 2 * of_matrix + (2 if shape.hidden_dropout else 0))
    within: float = 4 * H * size + F * size
    if sizes.fp8.recipe:
        within += H + F
    elif shape.activation != "relu":
        within += F * size
    if sizes.dtype == "fp32" and sizes.layout.recompute_granularity != "selective":
        within += _score_bytes(sizes)
    if isinstance(shape, SparseConfig):  # each choice keeps its token's way
        chosen = shape.moe_router_topk * (2 * H * size + 2 * F * size) - 2 * F * size
        within += chosen / shape.moe_layer_freq
    return sizes.tokens * (between * sizes.share_between_matrices + within / tp)


def _score_bytes(sizes: StepSizes) -> int:
    """Attention's weights of a token in float32, where no fused attention is, and again after dropout."""
    dropped = 5 if sizes.shape.attention_dropout else 0
    return (4 + dropped) * sizes.shape.num_attention_heads * sizes.seq_length


def _head_bytes(sizes: StepSizes) -> float:
    """A chunk's logits, the hidden states twice with their gradient, and what FP8 or float32 adds."""
    shape, tp, size = sizes.shape, sizes.layout.tensor_model_parallel_size, sizes.element_bytes
    V = padded_vocab_size(sizes.vocab_size, tp) // tp
    H = shape.word_embed_proj_dim or shape.hidden_size
    chunk = min(sizes.tokens, head_chunk(sizes.tokens, V * size, fp8=sizes.fp8.head))
    found = chunk * V * size + 3 * sizes.tokens * H * size
    if sizes.fp8.head:
        from xelm_kernels.fp8_products import ROWS

        both_ways = 2 * (V * H + sizes.tokens * H + chunk * V)  # the weight, hidden states, the gradient
        found += both_ways + 4 * min(ROWS, V) * H
    if sizes.dtype == "fp32":
        found += 4 * V * H  # its gradient comes by autograd
    return found
