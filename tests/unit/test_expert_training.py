"""Training one model on shards that lack something, with a tokenizer too large, and past a number's end."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.megatron_cpu import VOCAB_SIZE, Workshop, losses
from tests.helpers.weights import assert_same_weights, read_weights
from xelm_nemo.errors import ConfigError, Stopped, TrainingError
from xelm_nemo.expert import data, loop, step
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.parallel import Layout
from xelm_nemo.shards.build import shard_prefix, write_counts
from xelm_nemo.shards.dataset import TokenStream

ROOT = Path(__file__).resolve().parents[2]
SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("made"))
    workshop.set_up(SHAPE)
    return workshop.folder


@pytest.fixture
def workshop(made, tmp_path):
    """A copy of the shards and the seed model, to spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path)


def train(folder):
    loop.train(TrainJob.load(folder))


def empty(tokens, cluster, split):
    """Take every document out of a shard."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = shard_prefix(tokens, cluster, split)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    builder.finalize(f"{prefix}.idx")


def test_model_whose_clusters_have_no_validation_document_trains_without(workshop, caplog):
    empty(workshop.folder / "tokens", 1, "valid")
    folder = workshop.job("expert1", SHAPE, clusters=[1])
    with caplog.at_level("INFO", logger="xelm_nemo"):
        train(folder)
    assert (folder / "model/model.json").is_file()
    assert losses(folder).keys() == {("loss", 1)}
    said = [record.getMessage() for record in caplog.records if "validation" in record.getMessage()]
    assert said == ["expert1: no validation document in its clusters, so it trains without validation"]


def test_dense_model_validates_on_the_clusters_that_have_documents(workshop):
    empty(workshop.folder / "tokens", 1, "valid")
    folder = workshop.job("dense", SHAPE, clusters=[0, 1])
    train(folder)
    assert math.isfinite(losses(folder)["valid_loss", 1])


def test_tokenizer_with_more_ids_than_the_model_has_weights_is_refused_before_training(workshop):
    write_counts(workshop.folder / "tokens", VOCAB_SIZE + 1, {})
    folder = workshop.job("expert0", SHAPE)
    with pytest.raises(
        ConfigError, match=rf"has {VOCAB_SIZE + 1} ids, .*seed_model has weights for {VOCAB_SIZE};"
    ):
        train(folder)
    assert not (folder / "metrics.jsonl").exists()


def test_tokenizer_with_fewer_ids_than_the_model_has_weights_trains(workshop):
    write_counts(workshop.folder / "tokens", VOCAB_SIZE - 1, {})
    folder = workshop.job("expert0", SHAPE)
    train(folder)
    assert (folder / "model").is_dir()


@pytest.mark.parametrize("loss, grad_norm", [(1.0, math.nan), (1.0, math.inf), (math.nan, 1.0)])
def test_what_is_not_finite_on_the_last_step_is_not_stored(workshop, monkeypatch, loss, grad_norm):
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: (torch.tensor(loss), grad_norm))
    folder = workshop.job("expert0", SHAPE)
    with pytest.raises(
        TrainingError, match=r"expert0: the (loss|gradient norm) is (nan|inf) at iteration 1;"
    ):
        train(folder)
    assert not (folder / "model").exists() and not (folder / "checkpoints").exists()
    assert losses(folder) == {}


def test_gradient_that_is_not_finite_between_two_lines_of_log_stops_at_once(workshop, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: (torch.tensor(1.0), math.nan))
    folder = workshop.job("expert0", SHAPE, train_iters=100, log_interval=50, save_interval=50)
    with pytest.raises(TrainingError, match="at iteration 1;"):
        train(folder)


@pytest.fixture
def poison(monkeypatch):
    """Put a NaN into the gradient of the steps named, counted from 1."""

    def steps(*bad):
        count, update = itertools.count(1), step.update

        def poisoned(optimizer):
            if next(count) in bad:
                optimizer.chained_optimizers[0].buffers[0].grad_data[3] = math.nan
            return update(optimizer)

        monkeypatch.setattr(step, "update", poisoned)

    return steps


def test_step_whose_gradient_is_no_number_is_left_out_and_kept(workshop, poison):
    poison(2)
    folder = workshop.job("expert0", SHAPE, train_iters=4, skip_bad_steps=1, eval_interval=4)
    train(folder)
    assert [iteration for name, iteration in losses(folder) if name == "loss"] == [1, 3, 4]
    assert all(tensor.isfinite().all() for tensor in read_weights(folder / "model").values())
    kept = read_json(folder / "bad_steps/iter_0000002.json")
    assert (kept["iteration"], kept["grad_norm"]) == (2, "nan")
    job = TrainJob.load(folder)
    stream = TokenStream(
        [shard_prefix(Path(job.tokens), k, "train") for k in job.clusters], job.seq_length, seed=job.seed
    )
    assert kept["tokens"] == [stream.block(job.global_batch_size + row).tolist() for row in range(8)]


def test_run_that_is_stopped_after_a_step_that_was_left_out_is_saved(workshop, poison):
    poison(3)
    folder, steps = workshop.job("expert0", SHAPE, train_iters=9, skip_bad_steps=1, save_interval=9), []
    with pytest.raises(Stopped, match="stopped at iteration 3, which is saved"):
        loop.train(TrainJob.load(folder), loop.Watch(stop=lambda: 3 in steps, at_step=steps.append))
    assert (folder / "checkpoints/iter_0000003").is_dir()


def test_step_that_is_left_out_changes_no_weight(workshop, poison):
    once = workshop.job("once", SHAPE)
    train(once)
    poison(2)
    left_out = workshop.job("left_out", SHAPE, train_iters=2, skip_bad_steps=1)
    train(left_out)
    assert_same_weights(left_out / "model", once / "model")


def test_more_bad_steps_in_a_row_than_allowed_stop_the_training(workshop, poison):
    poison(1, 3, 4)
    folder = workshop.job("expert0", SHAPE, train_iters=6, skip_bad_steps=1)
    with pytest.raises(
        TrainingError, match=r"nan at iteration 4; .*training\.skip_bad_steps.*iter_0000004\.json"
    ):
        train(folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iter_0000002"]


def test_worker_that_explodes_says_so_in_one_line_and_keeps_the_last_checkpoint(workshop):
    optim = OptimConfig(lr=1e30)
    folder = workshop.job("expert0", SHAPE, optim=optim, train_iters=4, eval_interval=4)
    worker = subprocess.run(
        [sys.executable, "-m", "xelm_nemo.expert", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert worker.returncode == 2, worker.stderr
    errors = [line for line in worker.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in worker.stderr
    assert "expert0: the gradient norm is nan at iteration 2;" in errors[0] and "optim.lr=1e+30" in errors[0]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iter_0000001"]
    assert not (folder / "model").exists()
    assert all(math.isfinite(value) for value in losses(folder).values())
    assert json.loads((folder / "metrics.jsonl").read_text())["iteration"] == 1


def test_finding_scales_before_the_first_step_changes_no_bit(workshop, monkeypatch):
    plain, other = (workshop.job(name, SHAPE, train_iters=2) for name in ("plain", "other"))
    train(plain)
    iterate = loop.Trainer._iterate

    def after_finding_scales(trainer):
        if trainer.iteration == 0:
            step.find_scales(trainer.model, trainer.batches.train(0))
        iterate(trainer)

    monkeypatch.setattr(loop.Trainer, "_iterate", after_finding_scales)
    train(other)
    assert losses(other) == losses(plain)
    assert_same_weights(other / "model", plain / "model")


def test_next_steps_sequences_are_read_while_this_one_computes(workshop, monkeypatch):
    job = TrainJob.load(workshop.job("expert0", SHAPE))
    monkeypatch.setattr(data, "_on_device", lambda rows: rows)
    ahead, alone = (data.Batches(job, Layout(rank=0, dp_size=1, dp_rank=0, pp_rank=0)) for _ in range(2))
    list(ahead.train(0))
    (following,) = ahead._ahead.values()
    read = following.result(timeout=60)
    found, expected = list(ahead.train(1)), list(alone.train(1))
    assert len(found) == 4 and all(one is other for one, other in zip(found, read, strict=True))
    assert all(np.array_equal(one.tokens, other.tokens) for one, other in zip(found, expected, strict=True))


def test_wait_for_data_is_a_share_of_the_time(workshop):
    folder = workshop.job("expert0", SHAPE, train_iters=3)
    train(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["data_wait"] < 1 for line in lines if "loss" in line)
