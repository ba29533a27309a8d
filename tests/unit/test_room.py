"""What checkpoints will take is known before the first step, and what is not wanted of them goes."""

import dataclasses
import shutil
from collections import namedtuple

import pytest

from tests.helpers.megatron_cpu import Workshop
from tests.helpers.variants import VARIANTS, random_variant
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.worker import work
from xelm_nemo.files import size_of
from xelm_nemo.launch.signals import StopRequest
from xelm_nemo.model.config import ModelConfig, ParallelConfig, num_parameters
from xelm_nemo.stages.room import check_room, needed_bytes

SHAPE = ModelConfig(
    num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, max_position_embeddings=64
)


@pytest.fixture
def workshop(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(SHAPE)
    return workshop


def load(folder):
    return TrainJob.load(folder)


@pytest.mark.parametrize("dtype, keep_best", [("fp32", False), ("bf16", False), ("bf16", True)])
def test_what_a_job_leaves_is_what_was_said(workshop, dtype, keep_best):
    shape = dataclasses.replace(SHAPE, hidden_size=128, ffn_hidden_size=512)  # large beside its files' heads
    other = Workshop(workshop.folder / dtype)
    other.folder.mkdir()
    other.set_up(shape)
    job = load(other.job("job", shape, dtype=dtype, train_iters=4, keep_last=2, keep_best=keep_best))
    # One more state is whole for a moment, before the oldest goes.
    with_one_more = needed_bytes([job], at_once=1)
    left = needed_bytes([job], at_once=0)
    work(job, 0, StopRequest())
    states, best = size_of(other.folder / "job/checkpoints"), size_of(other.folder / "job/best")
    assert left == pytest.approx(states + best + size_of(job.model_folder), rel=0.1)
    assert with_one_more - left == pytest.approx(states / 2 + best, rel=0.1)


@pytest.mark.parametrize(
    "keep_optimizer, train_iters, states",
    [(True, 20, 1), (False, 20, 0), (False, 101, 1), (False, 100, 0), (True, 101, 2), (False, 1000, 3)],
)
def test_no_more_states_are_counted_than_are_saved(workshop, keep_optimizer, train_iters, states):
    lengths = {"train_iters": train_iters, "save_interval": 100, "keep_last": 2}
    job = load(workshop.job("job", SHAPE, **lengths, keep_optimizer=keep_optimizer))
    weights = num_parameters(SHAPE, load_facts(workshop.folder / "seed_model").vocab_size)
    assert needed_bytes([job], at_once=1) == weights * (4 + states * 16)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_as_the_model_has_them(name, tmp_path):
    random_variant(name).save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "model", Recipe("model", {}))
    facts = load_facts(tmp_path / "model")
    with parallel.model_parallel(alone=True):
        model = store.load_model(tmp_path / "model", ParallelConfig())
        assert num_parameters(facts.shape, facts.vocab_size) == sum(p.numel() for p in model.parameters())


def test_disk_that_is_too_small_is_said_before_anything_is_trained(workshop, monkeypatch):
    jobs = [load(workshop.job(f"expert{k}", SHAPE)) for k in range(3)]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed_bytes(jobs, at_once=1)))
    check_room(jobs, at_once=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed_bytes(jobs, at_once=1) - 1))
    with pytest.raises(
        ConfigError, match=r"training 3 models writes .* GB .*checkpoint\.keep_optimizer=false"
    ):
        check_room(jobs, at_once=1)
    leaner = [dataclasses.replace(job, keep_optimizer=False) for job in jobs]
    check_room(leaner, at_once=1)


def test_finished_model_keeps_its_weights_alone_if_asked_to(workshop):
    job = load(workshop.job("lean", SHAPE, keep_optimizer=False, keep_last=1))
    work(job, 0, StopRequest())
    assert not (workshop.folder / "lean/checkpoints").exists()
    written = (job.model_folder / "manifest.json").stat().st_mtime_ns
    work(job, 0, StopRequest())  # which finds it finished
    assert (job.model_folder / "manifest.json").stat().st_mtime_ns == written
