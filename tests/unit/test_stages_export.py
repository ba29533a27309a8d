"""Which models `export` writes, and what it says of those that it cannot."""

import dataclasses
import importlib.util

import pytest

from tests.helpers.megatron_cpu import write_seed_model
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.merge.upcycle import GateStart, upcycle_models
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.export import export_source

SHAPE = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=16
)


@pytest.fixture(scope="module", params=["xglm", "opt"])
def experts(request, tmp_path_factory):
    """A folder of a dense and a sparse model."""
    folder = tmp_path_factory.mktemp("experts")
    write_seed_model(folder / "dense/model", dataclasses.replace(SHAPE, architecture=request.param))
    upcycle_models(
        {"dense": folder / "dense/model"},
        folder / "upcycled/model",
        Recipe("model", {}),
        gate=GateStart(),
        num_moe_experts=4,
    )
    return folder


@pytest.fixture(autouse=True)
def nemo_is_there(monkeypatch):
    """As far as `export` looks before it begins."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "nemo" or find(name))


@pytest.mark.parametrize("format", ["hf", "metaseq", "nemo"])
def test_a_sparse_model_that_is_named_is_refused(experts, tmp_path, format):
    with pytest.raises(
        ConfigError, match=rf"^format={format} has no model with 4 moe_experts in some layers"
    ):
        export_source(ExportConfig(str(experts / "upcycled"), str(tmp_path / "out"), format=format))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["hf", "metaseq"])
def test_a_sparse_model_among_others_is_left_out_with_a_warning(experts, tmp_path, format, caplog):
    export_source(ExportConfig(str(experts), str(tmp_path / "out"), format=format))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dense"]
    (said,) = [line for line in caplog.messages if "left out" in line]
    assert said.startswith(f"export: upcycled is left out: format={format} has no model with 4 moe_experts")


@pytest.mark.parametrize(
    "words, said",
    [
        ({"format": "hf", "moe_layer_freq": 2}, "moe_layer_freq=2 is for format=upcycled; leave it out."),
        ({"format": "upcycled", "moe_layer_freq": 0}, "moe_layer_freq=0 is less than 1; 1 makes every layer"),
    ],
)
def test_layers_that_cannot_be_sparse_are_refused_for_their_own_reason(experts, tmp_path, words, said):
    with pytest.raises(ConfigError) as caught:
        export_source(ExportConfig(str(experts), str(tmp_path / "out"), **words))
    assert str(caught.value).startswith(said)
