"""Layers' matrices that Transformer Engine keeps in FP8: exact masters, and losses as with BF16 weights."""

import dataclasses
import shutil

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.fp8_weights import assert_model_is_the_masters
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.masters import is_matrix
from xelm_nemo.expert import loop
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig

SHAPE = ModelConfig(
    num_layers=3, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4, max_position_embeddings=64
)
STEPS = 10
LENGTH = {"dtype": "bf16", "train_iters": STEPS, "save_interval": STEPS // 2, "eval_interval": 3}
RTOL = 1e-2  # of a loss in FP8, as between layouts


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A place for jobs, whose seed model is in float32."""
    place = Workshop(tmp_path_factory.mktemp("fp8_weights"))
    place.set_up(SHAPE)
    return place


def kept(recipe, *, in_fp8):
    return {"fp8": FP8Config(recipe, param_gather=in_fp8)}


def train(folder, *watch):
    loop.train(TrainJob.load(folder), *watch)
    return folder


def assert_matrices_are_masters_alone(folder):
    assert_model_is_the_masters(folder, STEPS)
    names = checkpoint_tensors(folder / f"checkpoints/iter_{STEPS:07d}")
    assert not any(is_matrix(name) for name in names if not name.startswith("optimizer."))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_masters_begin_as_the_seeds_weights_number_by_number(workshop, monkeypatch, recipe):
    from megatron.core.fp8_utils import is_float8tensor

    found, rounded, matrices = {}, {}, set()

    def look(trainer):
        for name, parameter in trainer.core.named_parameters():
            found[name] = parameter.main_param.view(parameter.shape).cpu()
            if is_float8tensor(parameter):
                matrices.add(name)
                rounded[name] = parameter.dequantize().detach().float().cpu()

    monkeypatch.setattr(loop.Trainer, "run", look)
    train(workshop.job(f"seeded_{recipe}", SHAPE, **LENGTH, **kept(recipe, in_fp8=True)))
    seed = {name: lazy.read() for name, lazy in open_weights(workshop.folder / "seed_model/weights").items()}
    assert matrices == {name for name in seed if is_matrix(name)} and len(matrices) == 4 * SHAPE.num_layers
    assert_same_tensors(found, seed)
    for name in matrices:  # made from the seed, not from the random start
        assert not torch.equal(rounded[name], seed[name])
        torch.testing.assert_close(rounded[name], seed[name], rtol=0.07, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_losses_are_those_of_weights_in_bf16_and_the_model_is_the_masters(workshop, recipe):
    in_bf16, in_fp8 = (
        train(workshop.job(f"{recipe}_{fp8}", SHAPE, **LENGTH, **kept(recipe, in_fp8=fp8)))
        for fp8 in (False, True)
    )
    expected = losses(in_bf16)
    assert {("loss", STEPS), ("valid_loss", STEPS)} <= expected.keys()
    assert losses(in_fp8) == pytest.approx(expected, rel=RTOL)
    assert_matrices_are_masters_alone(in_fp8)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_run_that_goes_on_ends_with_the_bits_of_one_that_was_not_stopped(workshop, recipe):
    settings = {"deterministic": True, **LENGTH, **kept(recipe, in_fp8=True)}
    whole, stopped = (workshop.job(f"{name}_{recipe}", SHAPE, **settings) for name in ("whole", "stopped"))
    steps = []
    train(whole)
    with pytest.raises(loop.Stopped):
        train(stopped, loop.Watch(stop=lambda: 7 in steps, at_step=steps.append))
    train(stopped)
    assert losses(stopped) == losses(whole)
    checkpoint = f"checkpoints/iter_{STEPS:07d}"
    assert_same_tensors(*(checkpoint_tensors(folder / checkpoint) for folder in (stopped, whole)))
    assert_same_tensors(*(checkpoint_tensors(folder / "model/weights") for folder in (stopped, whole)))


@pytest.mark.gpu
@pytest.mark.parametrize("first", [False, True])
def test_run_goes_on_with_the_other_setting(workshop, first):
    half = f"checkpoints/iter_{STEPS // 2:07d}"
    origin, other = (
        workshop.job(f"{name}_{first}", SHAPE, **LENGTH, **kept("delayed", in_fp8=in_fp8))
        for name, in_fp8 in (("origin", first), ("other", not first))
    )
    train(origin)
    shutil.copytree(origin / half, other / half)
    train(other)
    expected = {key: loss for key, loss in losses(origin).items() if key[1] > STEPS // 2}
    assert losses(other) == pytest.approx(expected, rel=RTOL)


@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_two_data_parallel_ranks_learn_what_one_does(workshop, recipe):
    shape = dataclasses.replace(SHAPE, hidden_dropout=0.0, attention_dropout=0.0)
    alone, two = (
        workshop.job(f"{name}_{recipe}", shape, layout=layout, **LENGTH, **kept(recipe, in_fp8=True))
        for name, layout in (("alone", ParallelConfig()), ("dp2", ParallelConfig(data_parallel_size=2)))
    )
    train(alone)
    megatron_cpu.on_ranks(2, megatron_cpu.train_in_turn, [two], megatron_cpu.free_ports(1))
    assert losses(two) == pytest.approx(losses(alone), rel=RTOL)
    assert_matrices_are_masters_alone(two)
