"""One sparse model, its moe_experts on one rank or on several, computes and learns the same."""

import dataclasses
from functools import partial

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import (
    Workshop,
    checkpoint_tensors,
    losses,
    moved,
    relative_errors,
    write_seed_model,
)
from tests.helpers.weights import assert_same_weights
from tests.parallel.test_layouts import SHAPE as DENSE
from xelm_nemo.artifacts import Recipe
from xelm_nemo.errors import CheckpointError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.merge.upcycle import GateStart, sparse_shape, upcycle_models
from xelm_nemo.model.config import ParallelConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)
SHAPE = sparse_shape(DENSE, num_moe_experts=4)
LAYOUTS = {
    "ep2": ParallelConfig(data_parallel_size=2, expert_model_parallel_size=2),
    "dp2": ParallelConfig(data_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "tp2_sp_ep2": ParallelConfig(
        tensor_model_parallel_size=2, sequence_parallel=True, expert_model_parallel_size=2
    ),
}
RECOMPUTED = "recomputed"  # on one rank, with activations that are made again
ON_FOUR = {  # each moe_expert is on two of four ranks; or, where a stage has no sparse layer, on one
    "dp4_ep2": ParallelConfig(data_parallel_size=4, expert_model_parallel_size=2),
    "tp2_sp_dp2_ep2": ParallelConfig(
        tensor_model_parallel_size=2,
        data_parallel_size=2,
        sequence_parallel=True,
        expert_model_parallel_size=2,
    ),
    "pp2_dp2_ep2": ParallelConfig(
        pipeline_model_parallel_size=2, data_parallel_size=2, expert_model_parallel_size=2
    ),
}
EVERY = [*LAYOUTS, RECOMPUTED, *(pytest.param(name, marks=pytest.mark.slow) for name in ON_FOUR)]
RTOL = 1e-5


def sparse_job(workshop, name, shape=SHAPE, **changes):
    """The folder of a job on the model whose moe_experts differ."""
    folder = workshop.job(name, shape, **changes)
    dataclasses.replace(TrainJob.load(folder), init=str(workshop.folder / "sparse")).save()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of all jobs by name, each from one model whose moe_experts differ."""
    workshop = Workshop(tmp_path_factory.mktemp("layouts"))
    workshop.set_up(DENSE)
    models = {"seed": workshop.folder / "seed_model"}
    for seed in (2, 3, 4):
        models[str(seed)] = workshop.folder / f"model{seed}"
        write_seed_model(models[str(seed)], DENSE, seed=seed)
    gate = GateStart("uniform")
    upcycle_models(models, workshop.folder / "sparse", Recipe("model", {}), gate=gate, num_moe_experts=4)
    job = partial(sparse_job, workshop)
    long = {"train_iters": 4, "save_interval": 2, "eval_interval": 4}
    again = ParallelConfig(recompute_granularity="full")
    folders = {"ep1": job("ep1"), "long": job("long", **long), RECOMPUTED: job(RECOMPUTED, layout=again)}
    folders["dropping"] = job("dropping", dataclasses.replace(SHAPE, moe_expert_capacity_factor=0.5))
    for folder in folders.values():
        train(TrainJob.load(folder))
    folders["resumed"] = moved(folders["long"], ParallelConfig(), name="resumed", without=["iter_0000004"])
    train(TrainJob.load(folders["resumed"]))
    on_two = {name: job(name, layout=layout) for name, layout in LAYOUTS.items()}
    on_two["long_ep2"] = job("long_ep2", layout=LAYOUTS["ep2"], **long)
    ports = megatron_cpu.free_ports(len(on_two))
    megatron_cpu.on_ranks(2, megatron_cpu.train_in_turn, list(on_two.values()), ports)
    again = moved(on_two["long_ep2"], LAYOUTS["ep2"], name="resumed_ep2", without=["iter_0000004"])
    megatron_cpu.on_ranks(2, megatron_cpu.train_in_turn, [again], megatron_cpu.free_ports(1))
    return folders | on_two | {"resumed_ep2": again}


@pytest.fixture(scope="module")
def on_four(trained):
    """The folders of jobs on four ranks."""
    workshop = Workshop(trained["ep1"].parent)
    folders = {name: sparse_job(workshop, name, layout=layout) for name, layout in ON_FOUR.items()}
    long = {"train_iters": 2, "save_interval": 1, "eval_interval": 2, "keep_last": 2}
    folders["long_pp2"] = sparse_job(workshop, "long_pp2", layout=ON_FOUR["pp2_dp2_ep2"], **long)
    ports = megatron_cpu.free_ports(len(folders))
    megatron_cpu.on_ranks(4, megatron_cpu.train_in_turn, list(folders.values()), ports)
    whole = folders["long_pp2"]
    again = moved(whole, ON_FOUR["pp2_dp2_ep2"], name="resumed_pp2", without=["iter_0000002"])
    megatron_cpu.on_ranks(4, megatron_cpu.train_in_turn, [again], megatron_cpu.free_ports(1))
    return folders | {"resumed_pp2": again}


@pytest.fixture
def trained_at(trained, request):
    """Layout -> the folder of its job; four ranks start only where they are asked for."""
    return lambda name: (request.getfixturevalue("on_four") if name in ON_FOUR else trained)[name]


def gradients(job_folder):
    """Parameter -> its gradient; divided moe_experts have an optimizer of their own, which names show."""
    mark = "optimizer.state.exp_avg."
    tensors = checkpoint_tensors(job_folder / "checkpoints/iter_0000001")
    return {name.split(mark)[1]: tensor for name, tensor in tensors.items() if mark in name}


@pytest.mark.parametrize("layout", EVERY)
def test_layout_changes_no_loss(trained, trained_at, layout):
    assert losses(trained_at(layout)) == pytest.approx(losses(trained["ep1"]), rel=RTOL)


@pytest.mark.parametrize("layout", EVERY)
def test_layout_changes_no_gradient(trained, trained_at, layout):
    expected = gradients(trained["ep1"])
    assert any("experts.linear_fc2.bias" in name for name in expected)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if "router" in name)
    errors = relative_errors(gradients(trained_at(layout)), expected)
    assert {name: error for name, error in errors.items() if not error <= RTOL} == {}


@pytest.mark.parametrize("layout", EVERY)
def test_every_layout_finds_the_same_norm_of_the_gradient(trained, trained_at, layout):
    found, expected = (balance(folder)["grad_norm"] for folder in (trained_at(layout), trained["ep1"]))
    assert found == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("resumed, whole", [("resumed", "long"), ("resumed_ep2", "long_ep2")])
def test_resumed_run_ends_with_the_same_weights_bit_for_bit(trained, resumed, whole):
    assert_same_weights(trained[resumed] / "model", trained[whole] / "model")


@pytest.mark.slow
def test_a_run_resumes_where_a_stage_has_no_sparse_layer(on_four):
    assert_same_weights(on_four["resumed_pp2"] / "model", on_four["long_pp2"] / "model")


def test_training_state_at_another_expert_parallelism_is_refused_in_one_line(trained):
    there = moved(trained["long_ep2"], ParallelConfig(), name="whole", without=["iter_0000004"])
    with pytest.raises(CheckpointError, match=r"was written with .*expert_model_parallel_size of 2 or more;"):
        train(TrainJob.load(there))


def balance(folder):
    return read_metrics(folder / METRICS)[0]


@pytest.mark.parametrize("layout", EVERY)
def test_every_layout_logs_the_same_balance_of_the_gates(trained, trained_at, layout):
    keys = ("moe_aux_loss", "moe_load_max", "moe_load_min", "moe_dropped")
    expected, found = balance(trained["ep1"]), balance(trained_at(layout))
    assert [found[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=RTOL)
    assert expected["moe_load_max"] >= 1 >= expected["moe_load_min"] >= 0
    assert expected["moe_dropped"] == 0


def test_capacity_leaves_tokens_out_and_bounds_the_most_used(trained):
    found, free = balance(trained["dropping"]), balance(trained["ep1"])
    assert 0.5 <= found["moe_dropped"] < 1 and found["moe_load_max"] <= free["moe_load_max"]
    assert losses(trained["dropping"])["loss", 1] != losses(trained["ep1"])["loss", 1]
