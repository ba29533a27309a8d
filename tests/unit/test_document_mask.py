"""Packed documents that do not see each other: each has the loss that it has alone."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, gradients, losses, relative_errors
from tests.helpers.packed_attention import packed_on_a_cpu
from xelm_nemo import device, parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert import loop
from xelm_nemo.expert.data import Batches
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model import documents
from xelm_nemo.model.config import ModelConfig, ParallelConfig
from xelm_nemo.shards.build import shard_prefix
from xelm_nemo.shards.dataset import TokenStream

XGLM = ModelConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=32,
    init_method_std=0.2,  # large, so that what a token sees shows in the loss
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
SHAPES = {"xglm": XGLM, "opt": dataclasses.replace(XGLM, architecture="opt", activation="relu")}


@pytest.fixture(scope="module", params=SHAPES)
def workshop(request, tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp(request.param))
    made.set_up(SHAPES[request.param])
    return made, SHAPES[request.param]


WAYS = {"mask": contextlib.nullcontext, "packed": packed_on_a_cpu}


@pytest.fixture(params=WAYS)
def way(request):
    """How documents are kept apart: by Megatron's attention, and as Transformer Engine is called."""
    with WAYS[request.param]():
        yield request.param


def losses_alone(model, batch, positions_BS):
    """The loss of each label, every document of every sequence by itself, [B * S]."""
    tokens, labels = (batch[name].reshape(-1) for name in ("tokens", "labels"))
    starts = np.flatnonzero(positions_BS == 0).tolist()
    found = [
        model(tokens[None, start:end], None, None, labels=labels[None, start:end])[0]
        for start, end in zip(starts, [*starts[1:], positions_BS.size], strict=True)
    ]
    assert len(found) > len(positions_BS)
    return torch.cat(found)


def test_a_packed_document_has_the_loss_that_it_has_alone(workshop, way, tmp_path_factory):
    made, shape = workshop
    name = tmp_path_factory.mktemp("job").name
    job = TrainJob.load(made.job(name, shape, document_mask=True))
    with parallel.model_parallel() as layout:
        model = store.load_model(Path(job.init), ParallelConfig()).eval()
        batch = next(Batches(job, layout).train(0))
        assert batch["tokens"].shape == ((1, 64) if way == "packed" else (2, 32))
        found = model(batch["tokens"], batch["positions"], labels=batch["labels"], **batch["attention"])
        positions_BS = batch["positions"].reshape(2, 32).numpy()
        alone = losses_alone(model, batch, positions_BS)
        seen = model(*(batch["tokens"].reshape(2, 32), None, None), labels=batch["labels"].reshape(2, 32))
    torch.testing.assert_close(found.reshape(-1), alone, rtol=1e-5, atol=1e-6)
    first = positions_BS.cumsum(1).reshape(-1) == np.tile(np.arange(32).cumsum(), 2)
    assert torch.allclose(seen.reshape(-1)[first], alone[first], rtol=1e-5)
    assert ((seen.reshape(-1) - alone)[~first].abs() > 1e-3).float().mean() > 0.9


def test_both_ways_train_the_same(workshop, tmp_path_factory):
    made, shape = workshop
    prefix = tmp_path_factory.mktemp("jobs").name
    folders = {}
    for way, entered in WAYS.items():
        folders[way] = made.job(f"{prefix}_{way}", shape, document_mask=True)
        with entered():
            loop.train(TrainJob.load(folders[way]))
    folders["plain"] = made.job(f"{prefix}_plain", shape)
    loop.train(TrainJob.load(folders["plain"]))
    assert losses(folders["packed"]) == pytest.approx(losses(folders["mask"]), rel=1e-5)
    errors = relative_errors(*(gradients(folders[way], iteration=1) for way in ("packed", "mask")))
    assert max(errors.values()) < 1e-5
    assert losses(folders["plain"]) != pytest.approx(losses(folders["mask"]), rel=1e-3)


@pytest.mark.parametrize("granularity", ["full", "selective"])
def test_activations_made_again_change_no_bit(workshop, way, tmp_path_factory, granularity):
    made, shape = workshop
    shape = dataclasses.replace(shape, hidden_dropout=0.1, attention_dropout=0.1)
    prefix, folders = tmp_path_factory.mktemp("jobs").name, []
    for kept in (None, granularity):
        layout = ParallelConfig(recompute_granularity=kept)
        folders.append(made.job(f"{prefix}_{kept}", shape, layout=layout, document_mask=True, train_iters=2))
        loop.train(TrainJob.load(folders[-1]))
    assert losses(folders[0]) == losses(folders[1])
    errors = relative_errors(*(gradients(folder, iteration=2) for folder in folders))
    assert max(errors.values()) == 0.0


def test_positions_begin_anew_with_documents_and_with_blocks(workshop):
    made, _ = workshop
    prefixes = [shard_prefix(made.folder / "tokens", cluster, "train") for cluster in (0, 1)]
    stream, tokens = TokenStream(prefixes, 32, seed=1), TokenStream(prefixes, 1, seed=1)
    order, starts = stream._draw_epoch(0)
    begins = {int(start) for start in starts}
    for index in range(stream.num_blocks):
        expected, position = [], 0
        for place in range(index * 32, index * 32 + 32):
            position = 0 if place in begins or place == index * 32 else position + 1
            expected.append(position)
            assert tokens.block(place)[0] == stream.block(index)[place - index * 32]
        assert stream.positions(index).tolist() == expected
    assert len(order) == len(begins)


def test_recipe_of_a_job_without_the_mask_does_not_know_it(workshop):
    made, shape = workshop
    job = TrainJob.load(made.job("plain", shape))
    assert "document_mask" not in job.recipe().settings
    assert dataclasses.replace(job, document_mask=True).recipe().settings["document_mask"] is True


@pytest.mark.parametrize(
    "deterministic, capability, message",
    [
        (
            True,
            (9, 0),
            r"does not go with training\.deterministic=true on a GPU: .*; set one of them to false\.",
        ),
        (False, (8, 0), r"needs a GPU of compute capability 9\.0 or more, and A100 has 8\.0; .*=false\."),
    ],
)
def test_gpu_that_cannot_is_refused_before_a_model_is_built(
    workshop, monkeypatch, deterministic, capability, message
):
    made, shape = workshop
    monkeypatch.setattr(documents, "has_transformer_engine", lambda: True)
    monkeypatch.setattr(device, "capability", lambda: capability)
    monkeypatch.setattr(device, "name", lambda: "A100")
    monkeypatch.setattr(store, "load_model", lambda *args, **kwargs: pytest.fail("built a model"))
    folder = made.job(f"refused_{deterministic}", shape, document_mask=True)
    job = dataclasses.replace(TrainJob.load(folder), deterministic=deterministic)
    with pytest.raises(ConfigError, match=message):
        loop.train(job)


WHERE = {
    "hopper": ((9, 0), None),
    "switched_off": ((9, 0), "0"),
    "ampere": ((8, 0), None),
    "rtx": ((12, 0), None),
}


@pytest.mark.parametrize("where", WHERE)
def test_texts_are_packed_where_attention_over_them_is_fused(monkeypatch, where):
    capability, fused = WHERE[where]
    monkeypatch.setattr(documents, "has_transformer_engine", lambda: True)
    monkeypatch.setattr(device, "capability", lambda: capability)
    if fused is not None:
        monkeypatch.setenv("NVTE_FUSED_ATTN", fused)
    assert documents.can_pack(XGLM, torch.bfloat16) == (where == "hopper")
    assert not documents.can_pack(XGLM, torch.float32)
    odd = dataclasses.replace(XGLM, hidden_size=24)
    assert not documents.can_pack(odd, torch.bfloat16)
    assert not documents.can_pack(dataclasses.replace(XGLM, hidden_size=512), torch.bfloat16)
