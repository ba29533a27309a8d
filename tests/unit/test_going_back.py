"""A training goes back to a checkpoint once, and loses the later ones only when it has a newer one."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.helpers.megatron_cpu import Workshop
from tests.helpers.weights import assert_same_weights
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert import loop
from xelm_nemo.expert.going_back import forget_later, go_back
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import Watch
from xelm_nemo.expert.wandb_run import WANDB
from xelm_nemo.expert.worker import work
from xelm_nemo.launch.signals import StopRequest
from xelm_nemo.log import read_metrics
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.jobs import dense_job, expert_job, seed_job
from xelm_nemo.stages.run import Run

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A job that is finished at iteration 5, with checkpoints of 2 to 5."""
    workshop = Workshop(tmp_path_factory.mktemp("going_back"))
    workshop.set_up(SHAPE)
    folder = workshop.job("trained", SHAPE, train_iters=5, keep_last=4)
    loop.train(TrainJob.load(folder))
    return folder


@pytest.fixture
def job(trained):
    """A copy as it was before the model was written, to go back to iteration 3."""
    folder = trained.with_name("job")
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("model"))
    yield dataclasses.replace(TrainJob.load(trained), folder=str(folder), resume_at=3)
    shutil.rmtree(folder)


def checkpoints(job):
    folder = Path(job.folder) / "checkpoints"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("iter_*"))


BEFORE = [f"iter_000000{n}" for n in (2, 3, 4, 5)]
ASIDE = ["after_0000003/iter_0000004", "after_0000003/iter_0000005", "iter_0000002", "iter_0000003"]


def test_run_goes_back_and_ends_with_the_same_weights(job, trained):
    work(job, 0, StopRequest())
    assert_same_weights(job.model_folder, trained / "model")
    assert checkpoints(job) == BEFORE
    lines = read_metrics(Path(job.folder) / "metrics.jsonl")
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]


def test_run_on_weights_and_biases_that_was_told_of_later_iterations_is_left_once(job):
    file = Path(job.folder) / WANDB
    for is_first in (True, False):
        file.write_text('{"id": "a", "loss": 5}')
        go_back(job)
        assert file.exists() != is_first


def test_later_checkpoints_are_set_aside_until_a_newer_one_is_whole(job):
    class Killed(Exception):
        """Stands for SIGKILL."""

    def die():
        raise Killed

    go_back(job)
    assert checkpoints(job) == ASIDE
    with pytest.raises(Killed):
        loop.train(job, Watch(insist=die))
    assert checkpoints(job) == ASIDE
    loop.train(dataclasses.replace(job, save_interval=4))
    assert checkpoints(job) == BEFORE


def test_job_that_is_started_again_does_not_go_back_again(job):
    go_back(job)
    loop.train(job)
    go_back(job)
    assert checkpoints(job) == BEFORE


def test_setting_that_was_taken_back_may_be_given_again(job):
    go_back(job)
    loop.train(job)
    go_back(dataclasses.replace(job, resume_at=None))
    assert checkpoints(job) == BEFORE
    go_back(job)
    assert checkpoints(job) == ASIDE


def test_checkpoint_that_is_not_there_is_refused_with_those_that_are(job):
    with pytest.raises(ConfigError, match=r"resume_at=1: trained has checkpoints of \[2, 3, 4, 5\]; use one"):
        go_back(dataclasses.replace(job, resume_at=1))
    assert checkpoints(job) == BEFORE


def test_nothing_is_deleted_where_nothing_was_set_aside(job):
    forget_later(job)
    assert checkpoints(job) == BEFORE


def test_experts_and_the_dense_model_go_back_and_the_seed_model_does_not():
    run = Run(compose(["+experiment=udhr", "checkpoint.resume_at=100"]))
    assert [job.resume_at for job in (expert_job(run, 0), dense_job(run), seed_job(run))] == [100, 100, None]
