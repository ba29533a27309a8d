"""The position tables of XGLM and OPT: computed ones, and learned ones."""

import math
from typing import Any

import torch

POSITION_OFFSET = 2  # the first token is at position 2: fairseq counts on from the padding id, 1


def sinusoidal_positions(num_positions: int, hidden_size: int) -> torch.Tensor:
    """The rows that XGLM adds to its token embeddings, float32 [num_positions, hidden_size].

    Row p stands for position p + 2 and holds the sines of all frequencies, then the cosines (halves
    side by side, not interleaved); frequency i is exp(-i ln(10000) / (hidden_size / 2 - 1)). Source:
    fairseq's SinusoidalPositionalEmbedding, as HF's XGLM computes it.
    """
    half = hidden_size // 2
    frequency = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
    position = torch.arange(POSITION_OFFSET, POSITION_OFFSET + num_positions).float()
    angle = position[:, None] * frequency[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def learned_positions(config: Any, num_positions: int) -> torch.nn.Embedding:
    """OPT's table, [num_positions + 2, hidden_size]; row p is position p, so rows 0 and 1 are never used.

    Args:
        config: Megatron's configuration of the model.
        num_positions: the longest text, in tokens.
    """
    table = torch.nn.Embedding(POSITION_OFFSET + num_positions, config.hidden_size)
    config.embedding_init_method(table.weight)
    # Each sequence-parallel rank uses the rows of its own tokens; Megatron sums the gradients.
    table.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return table
