"""Weights & Biases hears of every line once, in one run, whatever kills the training; W&B is a stand-in."""

import dataclasses
import signal
import sys
from types import SimpleNamespace

import pytest

from tests.helpers.megatron_cpu import Workshop
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.screen import Screen
from xelm_nemo.expert.worker import drop_stale
from xelm_nemo.files import read_json
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.jobs import expert_job
from xelm_nemo.stages.run import Run

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)


class Wandb:
    """What is used of the package; remembers what it was told."""

    __spec__ = "found"

    class Error(Exception):
        """W&B's own."""

    def __init__(self):
        self.rows, self.runs, self.blocked = [], [], set()

    def Settings(self, **values):
        return values

    def init(self, **words):
        self.runs.append(words)
        self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return SimpleNamespace(log=self.rows.append, define_metric=lambda *names, step_metric: None)


@pytest.fixture
def wandb(monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


@pytest.fixture
def job(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(SHAPE)
    return TrainJob.load(workshop.job("expert0", SHAPE, train_iters=20, wandb_project="p"))


def train(job, resume_at, end):
    """What an attempt shows until it is killed."""
    screen = Screen(job, resume_at=resume_at, vocab_size=100)
    for iteration in range(resume_at + 1, end + 1):
        screen.show(iteration, {"loss": 3.0, "grad_norm": 1.5, "waited_seconds": 0.0})
        if iteration % 4 == 0:
            screen.show(iteration, {"valid_loss": 4.0})


def test_killed_and_resumed_training_is_one_run_with_every_line_once(wandb, job):
    for resume_at, end in ((0, 12), (8, 10), (8, 14), (14, 20)):
        train(job, resume_at, end)
    assert len({words["id"] for words in wandb.runs}) == 1
    assert {(words["project"], words["name"], words["resume"]) for words in wandb.runs} == {
        ("p", "expert0", "allow")
    }
    told = [(row["iteration"], "valid_loss" in row) for row in wandb.rows]
    assert [iteration for iteration, is_valid in told if not is_valid] == list(range(1, 21))
    assert [iteration for iteration, is_valid in told if is_valid] == [4, 8, 12, 16, 20]


def test_its_own_process_outlives_the_signals_that_stop_the_training(wandb, job):
    train(job, 0, 1)
    assert signal.SIGUSR2 in wandb.blocked
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_training_by_another_recipe_is_another_run(wandb, job):
    drop_stale(job)
    train(job, 0, 2)
    other = dataclasses.replace(job, train_iters=30)
    drop_stale(other)
    train(other, 0, 2)
    assert len({words["id"] for words in wandb.runs}) == 2 and len(wandb.rows) == 4


def test_refusal_is_one_line(wandb, job, monkeypatch):
    def refuse(**words):
        raise wandb.Error("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"wandb_project='p': api_key .* WANDB_MODE=offline"):
        train(job, 0, 1)


def test_training_that_goes_on_does_so_when_there_is_no_answer(wandb, job, monkeypatch, caplog):
    train(job, 0, 6)
    init = wandb.init

    def refuse(**words):
        raise wandb.Error("timed out")

    monkeypatch.setattr(wandb, "init", refuse)
    train(job, 4, 10)
    assert "goes on without Weights & Biases (timed out)" in caplog.text
    monkeypatch.setattr(wandb, "init", init)
    train(job, 8, 12)
    told = [row["iteration"] for row in wandb.rows if "valid_loss" not in row]
    assert told == [1, 2, 3, 4, 5, 6, 9, 10, 11, 12], "the lines between are in metrics.jsonl alone"


def test_missing_package_is_said_before_anything_is_done(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb_project='p' wants the package wandb"):
        compose(["+experiment=udhr", "training.wandb_project=p"])


def test_setting_reaches_the_jobs_and_makes_no_other_run(wandb, tmp_path):
    words = ["+experiment=udhr", f"output={tmp_path}", "precision.params_dtype=fp32"]
    with_, without = compose([*words, "training.wandb_project=p"]), compose(words)
    assert differing_keys(with_, without) == []
    assert (
        expert_job(Run(with_), 0).wandb_project == "p" and expert_job(Run(without), 0).wandb_project is None
    )


def test_without_the_setting_nothing_is_written(job, wandb, tmp_path):
    train(TrainJob.load(Workshop(tmp_path).job("expert1", SHAPE, train_iters=20)), 0, 2)
    assert wandb.runs == [] and not (tmp_path / "expert1/wandb.json").exists()
    train(job, 0, 2)
    assert read_json(tmp_path / "expert0/wandb.json")["loss"] == 2
