"""How many layers each pipeline stage takes: the head is counted as what it costs.

XGLM-1.7B's head costs as much as 9.6 of its 24 layers, so that two stages of twelve would wait for each
other: 17 and 7 do not.
"""

from xelm_nemo.model.config import ModelConfig
from xelm_nemo.model.flops import head_products, layer_products


def head_in_layers(shape: ModelConfig, vocab_size: int) -> float:
    """What the head costs, in layers: matrix products of a token, and half of its attention scores."""
    return head_products(shape, vocab_size) / layer_products(shape, shape.max_position_embeddings)


def stage_layers(shape: ModelConfig, vocab_size: int, num_stages: int) -> list[int]:
    """Layers of each stage, such that the slowest is as fast as can be; none is empty.

    Stages between the first and the last have equal numbers, for Megatron knows no other form.

    Args:
        shape: of the model; at least as many layers as stages.
        vocab_size: rows of the head.
        num_stages: pipeline_model_parallel_size.
    """
    if num_stages == 1:
        return [shape.num_layers]
    head, between = head_in_layers(shape, vocab_size), num_stages - 2
    splits = []
    for last in range(1, shape.num_layers - num_stages + 2):
        for each in range(1, shape.num_layers) if between else [0]:
            first = shape.num_layers - last - between * each
            if first >= 1:
                splits.append([first, *[each] * between, last])
    # Of equally fast ones, that whose other stages are most alike.
    return min(splits, key=lambda split: sorted([*split[:-1], split[-1] + head], reverse=True))
