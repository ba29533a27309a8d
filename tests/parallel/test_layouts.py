"""One model, divided in any way over real ranks, computes and learns the same."""

import dataclasses
import os

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, gradients, losses, moved, relative_errors
from tests.helpers.weights import assert_same_weights
from tests.helpers.workers import assert_killed_run_ends_as_an_undisturbed_one
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import ModelConfig, ParallelConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)
DROPOUT = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    max_position_embeddings=64,
    init_method_std=0.2,  # large, so that every layer shows in the loss
)
SHAPE = dataclasses.replace(DROPOUT, hidden_dropout=0.0, attention_dropout=0.0)
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(data_parallel_size=2),
}
MOVED_TO = ["tp2", "pp2", "dp2"]
MOVED_BACK = "moved_from_dp2"
MOVED = [*(f"moved_to_{layout}" for layout in MOVED_TO), MOVED_BACK]
RTOL = 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of all jobs by name. Starting ranks is what takes time, so one pair trains them all."""
    workshop = Workshop(tmp_path_factory.mktemp("layouts"))
    workshop.set_up(SHAPE)
    folders = {"tp1": workshop.job("tp1", SHAPE), "bf16": workshop.job("bf16", SHAPE, dtype="bf16")}
    folders["to_move"] = workshop.job("to_move", SHAPE, train_iters=6, save_interval=4, eval_interval=6)
    for granularity in (None, "full", "selective"):
        name, layout = f"recompute_{granularity}", ParallelConfig(recompute_granularity=granularity)
        folders[name] = workshop.job(name, DROPOUT, layout=layout, train_iters=2)
    for folder in folders.values():
        train(TrainJob.load(folder))
    on_two_ranks = {
        name: workshop.job(name, SHAPE, layout=layout, keep_best=True) for name, layout in LAYOUTS.items()
    }
    on_two_ranks["bf16_pp2"] = workshop.job("bf16_pp2", SHAPE, dtype="bf16", layout=LAYOUTS["pp2"])
    for name in MOVED_TO:
        on_two_ranks[f"moved_to_{name}"] = moved(
            folders["to_move"], LAYOUTS[name], name=f"moved_to_{name}", without=["iter_0000006"]
        )
    for name in ("dropout", "dropout_again"):
        on_two_ranks[name] = workshop.job(name, DROPOUT, layout=LAYOUTS["tp2_sp"])
    on_two_ranks["of_dp2"] = workshop.job(
        "of_dp2", SHAPE, layout=LAYOUTS["dp2"], train_iters=6, save_interval=4, eval_interval=6
    )
    ports = megatron_cpu.free_ports(len(on_two_ranks) + 1)
    megatron_cpu.on_ranks(2, rank_main, list(on_two_ranks.values()), ports, workshop.folder)
    folders[MOVED_BACK] = moved(
        on_two_ranks["of_dp2"], ParallelConfig(), name=MOVED_BACK, without=["iter_0000006"]
    )
    train(TrainJob.load(folders[MOVED_BACK]))
    return folders | on_two_ranks


def rank_main(folders, ports, masks_folder):
    megatron_cpu.train_in_turn(folders, ports[1:])
    os.environ["MASTER_PORT"] = str(ports[0])
    save_dropout_masks(masks_folder)


def save_dropout_masks(folder):
    """What this tensor-parallel rank drops, where ranks hold different parts and where they hold the same."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    from xelm_nemo import parallel
    from xelm_nemo.expert.step import seed_dropout

    with parallel.model_parallel(tensor_model_parallel_size=2) as layout:
        seed_dropout(1, 0, layout)
        with get_cuda_rng_tracker().fork():
            divided = torch.nn.functional.dropout(torch.ones(1000), 0.1)
        shared = torch.nn.functional.dropout(torch.ones(1000), 0.1)
        torch.save({"divided": divided, "shared": shared}, folder / f"masks{layout.rank}.pt")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_loss(trained, layout):
    assert losses(trained[layout]) == pytest.approx(losses(trained["tp1"]), rel=RTOL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_changes_no_gradient(trained, layout):
    expected = gradients(trained["tp1"], iteration=1)
    assert len(expected) == 15, "every parameter of the model, layers stacked"
    errors = relative_errors(gradients(trained[layout], iteration=1), expected)
    assert {name: error for name, error in errors.items() if not error <= RTOL} == {}


@pytest.mark.parametrize("name", ["recompute_full", "recompute_selective"])
def test_activations_made_again_change_no_bit(trained, name):
    assert losses(trained[name]) == losses(trained["recompute_None"])
    found, expected = (gradients(trained[folder], iteration=2) for folder in (name, "recompute_None"))
    assert max(relative_errors(found, expected).values()) == 0.0


def test_bf16_gradient_of_a_head_with_its_own_weight_is_that_of_a_tied_one(trained):
    assert losses(trained["bf16_pp2"]) == losses(trained["bf16"])
    found, expected = (gradients(trained[name], iteration=1) for name in ("bf16_pp2", "bf16"))
    assert max(relative_errors(found, expected).values()) <= RTOL
    words = "embedding.word_embeddings.weight"
    in_float32 = gradients(trained["tp1"], iteration=1)
    assert relative_errors({words: expected[words]}, {words: in_float32[words]})[words] < 0.05


@pytest.mark.parametrize("job", MOVED)
def test_run_that_moves_to_another_layout_goes_on_with_the_same_losses(trained, job):
    found, expected = losses(trained[job]), losses(trained["to_move"])
    assert ("loss", 6) in expected
    assert found == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("job", MOVED)
def test_run_that_moves_to_another_layout_saves_the_same_state(trained, job):
    name = "checkpoints/iter_0000006"
    found, expected = (checkpoint_tensors(trained[which] / name) for which in (job, "to_move"))
    # Adam divides differences of rounding by gradients that are nearly 0.
    errors = relative_errors(found, expected)
    assert {name: error for name, error in errors.items() if not error <= 1e-3} == {}


@pytest.mark.parametrize("job", MOVED)
def test_run_that_moves_to_another_layout_has_not_started_again(trained, job):
    checkpoints = {path.name for path in (trained[job] / "checkpoints").iterdir()}
    assert checkpoints == {"iter_0000004", "iter_0000006"}


@pytest.mark.slow
def test_run_that_moves_to_four_ranks_and_back_saves_the_same_state(tmp_path):
    """Two pipeline stages, each with the tied embedding, by two data-parallel ranks: all divide the state."""
    workshop, length = Workshop(tmp_path), {"train_iters": 6, "save_interval": 2, "eval_interval": 6}
    workshop.set_up(SHAPE)
    alone = workshop.job("alone", SHAPE, **length, keep_last=9)
    train(TrainJob.load(alone))
    layout = ParallelConfig(pipeline_model_parallel_size=2, data_parallel_size=2)
    divided = moved(alone, layout, name="divided", without=["iter_0000004", "iter_0000006"])
    megatron_cpu.on_ranks(4, megatron_cpu.train_in_turn, [divided], megatron_cpu.free_ports(1))
    back = moved(divided, ParallelConfig(), name="back", without=["iter_0000006"])
    train(TrainJob.load(back))
    expected = checkpoint_tensors(alone / "checkpoints/iter_0000006")
    for folder in (divided, back):
        errors = relative_errors(checkpoint_tensors(folder / "checkpoints/iter_0000006"), expected)
        assert {name: error for name, error in errors.items() if not error <= 1e-3} == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_best_weights_are_saved_from_every_layout(trained, layout):
    assert_same_weights(trained[layout] / "best/iter_0000001", trained[layout] / "model")


def test_dropout_on_two_ranks_repeats(trained):
    assert losses(trained["dropout"]) == losses(trained["dropout_again"])
    first, second = (
        checkpoint_tensors(trained[name] / "model/weights") for name in ("dropout", "dropout_again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dropout_drops(trained):
    assert losses(trained["dropout"])["loss", 1] != pytest.approx(losses(trained["tp1"])["loss", 1], rel=RTOL)


def test_tensor_parallel_ranks_drop_alike_only_where_they_hold_the_same(trained):
    first, second = (
        torch.load(trained["tp1"].parent / f"masks{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert torch.equal(first["shared"], second["shared"])
    assert not torch.equal(first["divided"], second["divided"])
    for masks in (first, second):
        assert 0.85 < (masks["divided"] != 0).float().mean() < 0.95


def test_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(DROPOUT)
    assert_killed_run_ends_as_an_undisturbed_one(workshop, DROPOUT)
