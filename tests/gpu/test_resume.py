"""A run on a GPU that is killed and started again: the bits of one that was not, in deterministic mode."""

import pytest

from tests.helpers.megatron_cpu import Workshop
from tests.helpers.workers import assert_killed_run_ends_as_an_undisturbed_one
from xelm_nemo.expert.graph import RECORDED
from xelm_nemo.model.config import FP8Config, ModelConfig

pytestmark = pytest.mark.gpu
SHAPE = ModelConfig(
    num_layers=3, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4, max_position_embeddings=256
)


FP8 = {"fp8": FP8Config(recipe="delayed", head=True)}
SETTINGS = {
    "bf16": {"cuda_graphs": False},
    "fp8": FP8 | {"cuda_graphs": False},
    "fp8_graphed": FP8 | {"seq_length": 128},  # killed and taken up when the graph is at work
}


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, name):
    assert SHAPE.hidden_dropout > 0 and SHAPE.attention_dropout > 0
    workshop = Workshop(tmp_path)
    workshop.set_up(SHAPE)
    settings = {"dtype": "bf16", "deterministic": True, **SETTINGS[name]}
    logged = assert_killed_run_ends_as_an_undisturbed_one(workshop, SHAPE, **settings)
    assert (RECORDED in logged) == ("cuda_graphs" not in settings)
