"""Layers' matrices in FP8 alone: their masters are a seed's weights, a checkpoint's and a model's."""

import contextlib
import shutil

import pytest
import torch

from tests.helpers import fp8_weights
from tests.helpers.fp8_weights import assert_model_is_the_masters, masters, model_weights
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.checkpoint.masters import is_matrix
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.expert import loop
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json
from xelm_nemo.model.config import FP8Config, ModelConfig

SHAPE = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)
GATHER = {"fp8": FP8Config(param_gather=True)}  # of no recipe: it is the stand-in that rounds
LENGTH = {"dtype": "bf16", "train_iters": 4, "save_interval": 2, "keep_best": True}


def test_where_weights_are_kept_makes_no_other_run():
    words = ["+experiment=udhr", "precision=fp8_delayed"]
    assert differing_keys(compose(words), compose([*words, "precision.fp8.param_gather=true"])) == []


@pytest.fixture
def workshop(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(SHAPE)
    return workshop


def train(folder, *watch, in_fp8=True):
    with fp8_weights.weights_in_fp8() if in_fp8 else contextlib.nullcontext():
        loop.train(TrainJob.load(folder), *watch)


def test_masters_begin_as_the_seeds_weights_number_by_number(workshop, monkeypatch):
    folder, weights = workshop.job("expert0", SHAPE, **LENGTH, **GATHER), {}

    def save(trainer):
        weights.update(trainer.core.named_parameters())
        trainer.checkpoints.begin(0, trainer.core, trainer.optimizer)
        trainer.checkpoints.end()

    monkeypatch.setattr(loop.Trainer, "run", save)
    train(folder)
    seed = model_weights(workshop.folder / "seed_model")
    assert all(tensor.dtype == torch.float32 for tensor in seed.values())
    assert_same_tensors(masters(folder, 0), seed)
    matrix = seed["decoder.layers.mlp.linear_fc2.weight"][1].bfloat16()
    assert not torch.equal(matrix, fp8_weights.as_fp8(matrix))
    assert torch.equal(weights["decoder.layers.1.mlp.linear_fc2.weight"], fp8_weights.as_fp8(matrix))
    words = seed["embedding.word_embeddings.weight"].bfloat16()
    assert torch.equal(weights["embedding.word_embeddings.weight"][: len(words)], words)


def test_finished_model_and_the_best_one_are_the_masters_in_bf16(workshop):
    folder = workshop.job("expert0", SHAPE, **LENGTH, **GATHER)
    train(folder)
    assert_model_is_the_masters(folder, 4)
    found = model_weights(folder / "model")
    matrices = [name for name in found if is_matrix(name)]
    assert len(matrices) == 4
    assert all(not torch.equal(found[name], fp8_weights.as_fp8(found[name])) for name in matrices)
    (best,) = (folder / "best").iterdir()
    iteration = int(best.name.removeprefix("iter_"))
    expected = {name: tensor.bfloat16() for name, tensor in masters(folder, iteration).items()}
    assert_same_tensors(model_weights(best), expected)


def test_checkpoint_has_matrices_as_masters_alone(workshop):
    folder = workshop.job("expert0", SHAPE, **LENGTH, **GATHER)
    train(folder)
    names = checkpoint_tensors(folder / "checkpoints/iter_0000002").keys()
    weights = {name for name in names if not name.startswith("optimizer.")}
    assert weights and not any(map(is_matrix, weights))
    assert sum(map(is_matrix, names)) == 3 * 4


def test_run_that_goes_on_ends_with_the_bits_of_one_that_was_not_stopped(workshop):
    whole, stopped = (workshop.job(name, SHAPE, **LENGTH, **GATHER) for name in ("whole", "stopped"))
    train(whole)
    steps = []
    with pytest.raises(loop.Stopped):
        train(stopped, loop.Watch(stop=lambda: 3 in steps, at_step=steps.append))
    train(stopped)
    assert losses(stopped) == losses(whole)
    assert_same_tensors(*(model_weights(folder / "model") for folder in (stopped, whole)))
    assert_same_tensors(*(masters(folder, 4) for folder in (stopped, whole)))


@pytest.mark.parametrize("first, second", [(GATHER, {}), ({}, GATHER)])
def test_run_goes_on_with_the_other_setting_from_the_masters(workshop, monkeypatch, first, second):
    """The last checkpoint of one kind of run becomes the other kind's model, without a step in between."""
    length = LENGTH | {"train_iters": 2, "keep_best": False}
    origin, other = (
        workshop.job("origin", SHAPE, **length, **first),
        workshop.job("other", SHAPE, **length, **second),
    )
    train(origin, in_fp8="fp8" in first)
    shutil.copytree(origin / "checkpoints", other / "checkpoints")
    weights, save = {}, loop.Trainer._save_model

    def look_and_save(trainer):
        weights.update(trainer.core.named_parameters())
        save(trainer)

    monkeypatch.setattr(loop.Trainer, "_save_model", look_and_save)
    train(other, in_fp8="fp8" in second)
    expected = {name: tensor.bfloat16() for name, tensor in masters(origin, 2).items()}
    assert_same_tensors(model_weights(other / "model"), expected)
    matrix = expected["decoder.layers.mlp.linear_fc1.weight"][0]
    found = weights["decoder.layers.0.mlp.linear_fc1.weight"]
    assert torch.equal(found, fp8_weights.as_fp8(matrix) if second else matrix)


def test_weights_recipe_does_not_depend_on_where_they_are_kept(workshop):
    kinds = [FP8Config("delayed"), FP8Config("delayed", param_gather=True)]
    jobs = [TrainJob.load(workshop.job(f"job{n}", SHAPE, fp8=fp8)) for n, fp8 in enumerate(kinds)]
    recipes = [dict(job.recipe().settings, name="") for job in jobs]
    assert recipes[0] == recipes[1]
    assert recipes[0]["fp8"] == {"recipe": "delayed", "first_last_layers_bf16": False, "head": False}
    assert read_json(workshop.folder / "job1/job.json")["fp8"]["param_gather"]
