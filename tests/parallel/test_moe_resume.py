"""A sparse model's training goes on at other divisions of its moe_experts."""

import dataclasses

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses, moved, relative_errors
from tests.parallel.test_layouts import SHAPE as DENSE
from xelm_nemo.artifacts import Recipe
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.merge.upcycle import GateStart, sparse_shape, upcycle_models
from xelm_nemo.model.config import ParallelConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)


def on_ranks(size):
    return ParallelConfig(data_parallel_size=size, expert_model_parallel_size=size)


def test_training_goes_on_at_another_expert_parallelism_than_it_was_saved_at(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(DENSE)
    sparse, gate = tmp_path / "sparse", GateStart("uniform")
    models = {"seed": tmp_path / "seed_model"}
    upcycle_models(models, sparse, Recipe("model", {}), gate=gate, num_moe_experts=4)
    length = {"train_iters": 6, "save_interval": 2, "eval_interval": 6, "keep_last": 9}
    at_two = workshop.job("at_two", sparse_shape(DENSE, num_moe_experts=4), layout=on_ranks(2), **length)
    dataclasses.replace(TrainJob.load(at_two), init=str(sparse)).save()
    megatron_cpu.on_ranks(2, megatron_cpu.train_in_turn, [at_two], megatron_cpu.free_ports(1))
    at_four = moved(at_two, on_ranks(4), name="at_four", without=["iter_0000004", "iter_0000006"])
    megatron_cpu.on_ranks(4, megatron_cpu.train_in_turn, [at_four], megatron_cpu.free_ports(1))
    assert losses(at_four) == pytest.approx(losses(at_two), rel=1e-5)
    found, expected = (
        checkpoint_tensors(folder / "checkpoints/iter_0000006") for folder in (at_four, at_two)
    )
    errors = relative_errors(found, expected)
    assert any("experts.linear_fc2.bias" in name for name in errors)
    assert {name: error for name, error in errors.items() if not error <= 1e-3} == {}
