"""The rules of weight maps, on tensors small enough to read."""

from types import SimpleNamespace

import pytest
import torch

from xelm_nemo.checkpoint.mapping import Copy, FusedQkv, PaddedRows, WeightMap, megatron_tensors
from xelm_nemo.errors import CheckpointError


def test_qkv_is_interleaved_by_head():
    rule = FusedQkv("qkv", "q", "k", "v", num_heads=2)
    query, key, value = (torch.tensor([start, start + 1, start + 2, start + 3]) for start in (10, 20, 30))
    fused = torch.zeros(12, dtype=torch.long)
    rule.join([query, key, value], fused)
    assert fused.tolist() == [10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33]
    assert [part.tolist() for part in rule.split(fused)] == [query.tolist(), key.tolist(), value.tolist()]


def test_padding_is_zeroed_on_the_way_in_and_cut_on_the_way_out():
    rule = PaddedRows("ours", "theirs", num_rows=2)
    padded = torch.full((4, 3), 7.0)
    rule.join([torch.ones(2, 3)], padded)
    assert padded.sum(1).tolist() == [3, 3, 0, 0]
    assert torch.equal(rule.split(padded)[0], torch.ones(2, 3))


def test_star_stands_for_every_layer():
    names = WeightMap([Copy("ours.*.w", "theirs.*.weight"), Copy("last", "end")], num_layers=2)
    ours = {"ours.0.w": torch.zeros(1), "ours.1.w": torch.ones(1), "last": torch.ones(1)}
    assert list(names.to_hf(ours)) == ["theirs.0.weight", "theirs.1.weight", "end"]


@pytest.mark.parametrize(
    "ours, complaint",
    [({"b": torch.zeros(1)}, "missing: a; unknown: b"), ({}, "missing: a")],
)
def test_map_that_does_not_fit_our_model_is_an_error(ours, complaint):
    names = WeightMap([Copy("a", "x")], num_layers=1)
    with pytest.raises(CheckpointError, match=complaint):
        names.to_hf(ours)
    with pytest.raises(CheckpointError, match=complaint):
        names.to_megatron({"x": torch.zeros(1)}, ours, source="here")


def test_nothing_is_filled_when_one_shape_is_wrong():
    names = WeightMap([Copy("a", "x"), Copy("b", "y")], num_layers=1)
    ours = {"a": torch.zeros(2), "b": torch.zeros(2)}
    with pytest.raises(CheckpointError, match=r"here .* y has shape \[3\], expected \[2\]"):
        names.to_megatron({"x": torch.ones(2), "y": torch.ones(3)}, ours, source="here")
    assert not ours["a"].any()


def test_layers_of_megatron_and_of_transformer_engine_have_the_same_names():
    norms = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    states = [
        {f"decoder.layers.0.{norm}{kind}": 0 for norm in spelling for kind in ("weight", "bias")}
        for spelling in (norms.keys(), norms.values())
    ]
    states[1]["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    own, fused = (megatron_tensors(SimpleNamespace(state_dict=lambda state=state: state)) for state in states)
    assert own.keys() == fused.keys()
