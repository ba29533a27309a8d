"""A run of a flattened tensor as boxes of the tensor."""

import math

import numpy as np
import pytest
import torch

from xelm_nemo.checkpoint.optim_state import boxes


@pytest.mark.parametrize("seed", range(200))
def test_boxes_are_the_elements_of_the_run_in_order(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 6, size=random.integers(1, 5)).tolist())
    start, stop = sorted(random.integers(0, math.prod(shape) + 1, size=2).tolist())
    tensor, found = torch.arange(math.prod(shape)).view(shape), []
    for place, extent in boxes(start, stop, shape):
        box = tensor[tuple(slice(p, p + e) for p, e in zip(place, extent, strict=True))]
        assert box.shape == extent  # it lies within the tensor
        found += box.flatten().tolist()
    assert found == list(range(start, stop))


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 12, [((0, 0), (3, 4))]),
        (4, 12, [((1, 0), (2, 4))]),
        (1, 3, [((0, 1), (1, 2))]),
        (2, 11, [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 3))]),
        (2, 7, [((0, 2), (1, 2)), ((1, 0), (1, 3))]),
        (5, 5, []),
    ],
)
def test_run_of_a_matrix_is_three_boxes_at_most(start, stop, expected):
    assert list(boxes(start, stop, (3, 4))) == expected
