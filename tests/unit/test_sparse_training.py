"""What a sparse model's training takes, and what it logs."""

import dataclasses

import pytest

from tests.helpers.megatron_cpu import Workshop
from xelm_nemo.artifacts import Recipe
from xelm_nemo.errors import CheckpointError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.merge.upcycle import GateStart, sparse_shape, upcycle_models
from xelm_nemo.model.config import ModelConfig

DENSE = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=64
)


@pytest.fixture
def trained(tmp_path):
    """Trains a model with seven moe_experts for a step, with such settings; what it logs."""
    workshop = Workshop(tmp_path)
    workshop.set_up(DENSE)

    def train_one(**changes):
        settings = {"num_moe_experts": 7} | changes.pop("of_the_seed", {})
        models, gate = {"seed": tmp_path / "seed_model"}, GateStart()
        upcycle_models(models, tmp_path / "sparse", Recipe("model", {}), gate=gate, **settings)
        folder = workshop.job("job", sparse_shape(DENSE, **{"num_moe_experts": 7} | changes))
        job = dataclasses.replace(TrainJob.load(folder), init=str(tmp_path / "sparse"))
        train(job)
        return read_metrics(folder / METRICS)[0]

    return train_one


def test_without_a_balancing_loss_there_is_none_in_the_log(trained):
    found = trained(moe_aux_loss_coeff=0.0)
    assert "moe_aux_loss" not in found
    assert found["moe_load_max"] >= 1 >= found["moe_load_min"]


def test_the_largest_capacity_that_there_can_be_leaves_next_to_nothing_out(trained):
    found = trained(moe_expert_capacity_factor=7 / 2 - 1e-3)
    assert 0 <= found["moe_dropped"] < 0.01 and found["moe_aux_loss"] > 0


def test_a_seed_model_of_other_moe_experts_is_refused(trained):
    with pytest.raises(CheckpointError, match=r"sparse has num_moe_experts=4 \(model.num_moe_experts=7\)"):
        trained(of_the_seed={"num_moe_experts": 4})
