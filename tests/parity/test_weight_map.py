"""The rules of weight maps, on tensors small enough to read."""

import pytest
import torch

from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.mapping import WeightMap
from xelm_nemo.checkpoint.rules import Copy, FusedQkv, PaddedRows
from xelm_nemo.errors import CheckpointError


def lazy(tensor):
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor, "here")


def unread(*shape):
    """A tensor that nobody may read."""
    return LazyTensor(shape, torch.float32, lambda: pytest.fail("was read"), "here")


def test_qkv_is_interleaved_by_head():
    rule = FusedQkv("qkv", "q", "k", "v", (4,), num_heads=2)
    query, key, value = (torch.tensor([start, start + 1, start + 2, start + 3]) for start in (10, 20, 30))
    fused = rule.join([query, key, value], torch.long)
    assert fused.tolist() == [10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33]
    assert tuple(fused.shape) == rule.megatron_shape
    assert [part.tolist() for part in rule.split(fused)] == [query.tolist(), key.tolist(), value.tolist()]


def test_padding_is_zeroed_on_the_way_in_and_cut_on_the_way_out():
    rule = PaddedRows("ours", "theirs", (2, 3), padded_rows=4)
    padded = rule.join([torch.ones(2, 3)], torch.float32)
    assert padded.sum(1).tolist() == [3, 3, 0, 0]
    assert torch.equal(rule.split(padded)[0], torch.ones(2, 3))


def test_more_padding_of_another_layout_is_cut_too():
    names = WeightMap([PaddedRows("ours", "theirs", (2, 3), padded_rows=4)], num_layers=1)
    (batch,) = names.to_hf({"ours": lazy(torch.ones(8, 3))}, source="here")
    assert batch.make()["theirs"].shape == (2, 3)


def test_star_stands_for_every_layer():
    names = WeightMap([Copy("ours.*.w", "theirs.*.weight", (1,)), Copy("last", "end", (1,))], num_layers=2)
    ours = {name: unread(1) for name in ("ours.0.w", "ours.1.w", "last")}
    batches = names.to_hf(ours, source="here")
    assert [name for batch in batches for name in batch.shapes] == [
        *("theirs.0.weight", "theirs.1.weight", "end")
    ]
    theirs = {name: unread(1) for batch in batches for name in batch.shapes}
    assert list(names.to_megatron(theirs, torch.float32, source="here")) == list(ours)


@pytest.mark.parametrize(
    "ours, complaint", [({"b": unread(1)}, "missing: a; unknown: b"), ({}, "missing: a")]
)
def test_checkpoint_of_ours_with_other_tensors_is_an_error(ours, complaint):
    names = WeightMap([Copy("a", "x", (1,))], num_layers=1)
    with pytest.raises(CheckpointError, match=f"here has other tensors .* {complaint}"):
        names.to_hf(ours, source="here")


def test_shapes_of_both_sides_are_checked_before_anything_is_read():
    names = WeightMap([Copy("a", "x", (2,)), PaddedRows("b", "y", (2, 3), padded_rows=4)], num_layers=1)
    with pytest.raises(CheckpointError, match=r"here .* x has shape \[3\], expected \[2\]"):
        names.to_megatron({"x": unread(3), "y": unread(2, 3)}, torch.float32, source="here")
    with pytest.raises(CheckpointError, match=r"here .* b has shape \[1, 3\], expected \[4, 3\]"):
        names.to_hf({"a": unread(2), "b": unread(1, 3)}, source="here")
