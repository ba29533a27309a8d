"""Operations that a training step cannot do without, and what share of a GPU's peak they are (MFU).

6 a weight and token, embedding as head: two for a multiplication and its sum, once forward and twice
backward. Causal attention counts at half, recomputation not at all. The peak is that of dense BF16 products,
in FP8 too.
"""

from xelm_nemo import device
from xelm_nemo.model.config import ModelConfig, SparseConfig, matrix_elements

# FLOP/s of dense BF16 products, from NVIDIA's data sheets of the SXM cards; a name contains one of these.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def layer_products(shape: ModelConfig, seq_length: int) -> float:
    """Multiplications of one token in one layer, its attention over half of the sequence.

    Of a sparse model it is the mean of its layers, with as many moe_experts as a token has.
    """
    products = matrix_elements(shape) + shape.hidden_size * seq_length
    if not isinstance(shape, SparseConfig):
        return products
    experts = (shape.moe_router_topk - 1) * 2 * shape.hidden_size * shape.ffn_hidden_size
    gate = shape.num_moe_experts * shape.hidden_size
    return products + (experts + gate) * len(shape.moe_layers) / shape.num_layers


def head_products(shape: ModelConfig, vocab_size: int) -> int:
    """Multiplications of one token in the head."""
    return vocab_size * (shape.word_embed_proj_dim or shape.hidden_size)


def training_flops(shape: ModelConfig, vocab_size: int, seq_length: int) -> float:
    """Operations of a step, for each of its tokens."""
    return 3 * forward_flops(shape, vocab_size, seq_length)


def forward_flops(shape: ModelConfig, vocab_size: int, seq_length: int) -> float:
    """Operations of a forward pass, for each of its tokens."""
    layers = shape.num_layers * layer_products(shape, seq_length)
    return 2.0 * (layers + head_products(shape, vocab_size))


def peak_flops(gpu: str) -> float | None:
    """A GPU's peak by its name, FLOP/s; None for one that is not in the list."""
    return next((peak for name, peak in PEAKS.items() if name in gpu), None)


def own_peak() -> float | None:
    """The peak of this process's GPU; None on a CPU."""
    return peak_flops(device.name()) if device.has_cuda() else None
