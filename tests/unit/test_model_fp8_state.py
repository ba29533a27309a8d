"""FP8 scales go into a checkpoint as tensors, and come back bit for bit."""

import pickle
from types import SimpleNamespace

import pytest
import torch

from xelm_nemo.errors import CheckpointError
from xelm_nemo.model import fp8_state


class Layer:
    """As much of a layer of Transformer Engine as its scales need."""

    def __init__(self):
        self.fp8_meta = {}

    def init_fp8_meta_tensors(self, history_len):
        products = self.fp8_meta["num_gemms"]
        for direction, count in (("scaling_fwd", 3 * products), ("scaling_bwd", 2 * products)):
            self.fp8_meta[direction] = SimpleNamespace(
                scale=torch.ones(count), amax_history=torch.zeros(history_len, count)
            )


@pytest.fixture(autouse=True)
def without_transformer_engine(monkeypatch):
    monkeypatch.setattr(fp8_state, "_delayed_scaling", lambda length: length)


@pytest.mark.parametrize("products", [1, 2])
def test_scales_come_back_bit_for_bit(products):
    layer, other = Layer(), Layer()
    layer.fp8_meta["num_gemms"] = products
    layer.init_fp8_meta_tensors(1024)
    for direction in ("scaling_fwd", "scaling_bwd"):
        for name in ("scale", "amax_history"):
            getattr(layer.fp8_meta[direction], name).uniform_(0, 1e5)
    fp8_state.unpack_scales(other, fp8_state.packed_scales(layer))
    assert other.fp8_meta["num_gemms"] == products
    for direction in ("scaling_fwd", "scaling_bwd"):
        for name in ("scale", "amax_history"):
            found, expected = (getattr(each.fp8_meta[direction], name) for each in (other, layer))
            assert torch.equal(found, expected)


def test_weights_that_layers_were_made_with_are_forgotten_where_they_are_counted():
    layer, plain = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    history = torch.ones(4, 3)
    layer.fp8_meta = {"scaling_fwd": SimpleNamespace(amax_history=history), "scaling_bwd": SimpleNamespace()}
    plain.fp8_meta = {"scaling_fwd": SimpleNamespace()}
    fp8_state.forget_largest(torch.nn.Sequential(layer, plain, torch.nn.GELU()))
    assert layer.fp8_meta["scaling_fwd"].amax_history is history and not history.any()


@pytest.mark.parametrize("meta", [{}, {"scaling_fwd": SimpleNamespace(), "scaling_bwd": SimpleNamespace()}])
def test_layer_without_scales_has_an_empty_state_and_takes_one(meta):
    layer = Layer()
    layer.fp8_meta = meta
    assert fp8_state.packed_scales(layer).numel() == 0
    for nothing in (None, torch.empty(0, dtype=torch.uint8)):
        fp8_state.unpack_scales(layer, nothing)


@pytest.mark.parametrize("found", [pickle.dumps({"recipe": 1}), b"\x00" * 40, b"{}"])
def test_what_is_no_scales_is_refused_and_nothing_runs(found):
    with pytest.raises(CheckpointError, match="delete the folder checkpoints"):
        fp8_state.unpack_scales(Layer(), torch.frombuffer(bytearray(found), dtype=torch.uint8))
