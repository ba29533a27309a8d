"""The weights of the lowest validation loss stay, whatever comes after and whenever the run is killed."""

import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors
from tests.helpers.weights import assert_same_tensors, assert_same_weights
from xelm_nemo import artifacts
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.store import Checkpoints
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert import loop
from xelm_nemo.expert.job import JOB, TrainJob
from xelm_nemo.expert.loop import Watch
from xelm_nemo.expert.worker import drop_stale
from xelm_nemo.files import read_json, write_json
from xelm_nemo.model.config import ModelConfig

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("best"))
    workshop.set_up(SHAPE)
    return workshop


@pytest.fixture
def train(workshop, monkeypatch):
    """Train a job whose validations have these losses; one that is None is where it is killed.

    A state is whole when the step after it is done, so that it is known where a killed run goes on.
    """
    monkeypatch.setattr(Checkpoints, "go_on", Checkpoints.end)

    def run(job_folder, *found, insist=lambda: None):
        losses = iter(found)

        def valid_loss(*_):
            loss = next(losses)
            if loss is None:
                raise Killed
            return torch.tensor(loss)

        monkeypatch.setattr(loop, "valid_loss", valid_loss)
        loop.train(TrainJob.load(job_folder), Watch(insist=insist))
        return job_folder

    return run


def job(workshop, name, **settings):
    return workshop.job(name, SHAPE, **{"train_iters": 5, "keep_best": True, "keep_last": 1} | settings)


def best(folder):
    """Names and validation losses of the kept weights, hidden folders left out."""
    found = sorted((folder / "best").glob("[!.]*"))
    return {path.name: artifacts.check(path, "model")["recipe"]["settings"]["valid_loss"] for path in found}


def test_weights_of_the_lowest_loss_stay_while_checkpoints_go(workshop, train):
    folder = train(job(workshop, "lowest", keep_last=9), 3.0, 2.5, 2.75, 2.5, 9.0)
    assert best(folder) == {"iter_0000002": 2.5}
    kept = folder / "best/iter_0000002"
    facts = load_facts(kept)
    assert (facts.iteration, facts.name, facts.consumed_tokens) == (2, "lowest", 2 * 8 * 32)
    weights = checkpoint_tensors(kept / "weights")
    state = checkpoint_tensors(folder / "checkpoints/iter_0000002")
    assert_same_tensors(weights, {name: state[name.removeprefix("module.")] for name in weights})


def test_finished_model_is_the_last_one_and_the_same_without_keeping_the_best(workshop, train):
    losses = 3.0, 2.5, 2.75, 2.5, 9.0
    with_best = train(job(workshop, "with_best"), *losses)
    without = train(job(workshop, "without", keep_best=False), *losses)
    assert_same_weights(with_best / "model", without / "model")
    assert not (without / "best").exists()


def test_restarted_run_knows_what_to_beat(workshop, train):
    folder = job(workshop, "restarted")
    with pytest.raises(Killed):
        train(folder, 2.5, 2.0, None)
    train(folder, 2.25, 2.125, 2.5)
    assert best(folder) == {"iter_0000002": 2.0}
    again = job(workshop, "beaten")
    with pytest.raises(Killed):
        train(again, 2.5, 2.0, None)
    train(again, 2.25, 1.5, 2.5)
    assert best(again) == {"iter_0000004": 1.5}


def test_best_is_whole_until_a_better_one_is(workshop, train):
    folder = job(workshop, "whole")

    def die_when_iteration_2_is_named():
        if (folder / "best/.iter_0000002.part").exists():
            assert best(folder) == {"iter_0000001": 2.5}
            raise Killed

    with pytest.raises(Killed):
        train(folder, 2.5, 2.0, insist=die_when_iteration_2_is_named)
    assert best(folder) == {"iter_0000001": 2.5}
    train(folder, 2.0, 3.0, 3.0, 3.0)
    assert best(folder) == {"iter_0000002": 2.0}


def test_a_folder_whose_deletion_was_cut_short_is_passed_over_and_then_goes(workshop, train):
    folder = job(workshop, "half_deleted")
    with pytest.raises(Killed):
        train(folder, 2.5, 2.0, None)
    left = folder / "best/iter_0000001"
    (left / "weights").mkdir(parents=True)
    (left / "weights/part.distcp").touch()
    train(folder, 2.25, 1.5, 2.5)
    assert best(folder) == {"iter_0000004": 1.5}


def test_only_validations_at_checkpoints_count(workshop, train):
    folder = train(job(workshop, "rarely", save_interval=2), 3.0, 2.5, 1.0, 2.25, 2.75)
    assert best(folder) == {"iter_0000004": 2.25}


def test_best_of_other_settings_goes(workshop, train):
    folder = job(workshop, "stale")
    drop_stale(TrainJob.load(folder))
    train(folder, 2.5, 2.0, 3.0, 3.0, 3.0)
    write_json(folder / JOB, read_json(folder / JOB) | {"seed": 2})
    drop_stale(TrainJob.load(folder))
    assert not (folder / "best").exists()


def test_keeping_the_best_needs_validations_where_checkpoints_are():
    compose(["checkpoint.keep_best=true", "training.save_interval=200"])
    compose(["training.eval_interval=99999", "training.save_interval=7"])


def test_each_round_needs_validations_where_its_checkpoints_are():
    words = ["rounds=hmr", "clustering=typology", "clustering.num_clusters=2", "clustering.languages=[en,ja]"]
    words += ["checkpoint.keep_best=true", "training.eval_interval=100", "training.save_interval=100"]
    compose([*words, "rounds.train_iters=[400,200]", "training.train_iters=100"])
    with pytest.raises(ConfigError, match=r"first meet at iteration 100, the last; use one .* at most 50"):
        compose([*words, "rounds.train_iters=[400,100]", "training.train_iters=400"])
