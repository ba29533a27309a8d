"""Training on instruction data: a step's loss and gradient are the mean over all of its targets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, gradients, losses, relative_errors, write_sources
from xelm_nemo import parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.expert import loop
from xelm_nemo.expert.data import Batches
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.config import ModelConfig, ParallelConfig
from xelm_nemo.parallel import Layout
from xelm_nemo.shards import sources
from xelm_nemo.shards.build import shard_prefix
from xelm_nemo.shards.dataset import TokenStream

SHAPE = ModelConfig(
    num_layers=1,
    hidden_size=16,
    ffn_hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=32,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
WORDS, NORM = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("made"))
    made.set_up(SHAPE)
    write_sources(made.folder / "tokens")
    return made


@pytest.fixture(scope="module")
def trained(workshop):
    """The folder of a job by the size of its micro-batches."""
    folders = {size: workshop.job(f"micro{size}", SHAPE, micro_batch_size=size) for size in (1, 2, 8)}
    for folder in folders.values():
        loop.train(TrainJob.load(folder))
    return folders


def definition(job, split, seed, count):
    """The mean of the targets' losses over the first blocks, from logits, and two gradients of it."""
    prefixes = [shard_prefix(Path(job.tokens), cluster, split) for cluster in job.clusters]
    stream = TokenStream(prefixes, job.seq_length, seed=seed)
    block = torch.tensor(np.stack([stream.block(index) for index in range(count)]))
    counts = torch.tensor(np.stack([stream.is_target(index) for index in range(count)]))
    assert 0.2 < counts.float().mean() < 0.8
    with parallel.model_parallel():
        model = store.load_model(Path(job.init), ParallelConfig())
        loss = torch.nn.functional.cross_entropy(model.logits(block[:, :-1])[counts], block[:, 1:][counts])
        loss.backward()
        words, norm = model.embedding.word_embeddings.weight, model.decoder.final_layernorm.weight
        return loss.item(), {WORDS: words.grad[: model.real_vocab_size], NORM: norm.grad}


def test_a_step_is_the_mean_over_its_targets(trained):
    job = TrainJob.load(trained[2])
    loss, expected = definition(job, "train", job.seed, job.global_batch_size)
    assert losses(trained[2])["loss", 1] == pytest.approx(loss, rel=1e-5)
    found = gradients(trained[2], iteration=1)
    errors = relative_errors({name: found[name] for name in expected}, expected)
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("size", [1, 8])
def test_micro_batches_with_unequal_numbers_of_targets_change_nothing(trained, size):
    assert losses(trained[size]) == pytest.approx(losses(trained[2]), rel=1e-5)
    errors = relative_errors(*(gradients(trained[n], iteration=1) for n in (size, 2)))
    assert max(errors.values()) < 1e-5


def test_validation_is_the_mean_over_its_targets(workshop):
    job = TrainJob.load(workshop.job("still", SHAPE, eval_sequences=5))
    with parallel.model_parallel() as layout:
        from xelm_nemo.expert.optim import wrap
        from xelm_nemo.expert.step import valid_loss

        model = wrap(store.load_model(Path(job.init), ParallelConfig()))
        found = float(valid_loss(model, *Batches(job, layout).valid()))
    assert found == pytest.approx(definition(job, "valid", None, 5)[0], rel=1e-5)


def test_validation_without_a_target_in_reach_is_none(workshop):
    job = TrainJob.load(workshop.job("sources", SHAPE, eval_sequences=1, clusters=[0]))
    prefix = shard_prefix(Path(job.tokens), 0, "valid")
    kept = sources.read_sources(prefix)
    try:
        sources.write_sources(prefix, np.full_like(kept, 10_000))
        assert not Batches(job, Layout(rank=0, dp_size=1, dp_rank=0, pp_rank=0)).can_validate
    finally:
        sources.write_sources(prefix, kept)
