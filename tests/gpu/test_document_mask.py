"""Packed documents in Transformer Engine's attention: each has the loss and gradient that it has alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, losses
from xelm_nemo import device, parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.lazy import DTYPES
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.data import Batches
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig
from xelm_nemo.model.documents import takes_packed

pytestmark = pytest.mark.gpu
SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=256,
    ffn_hidden_size=512,
    num_attention_heads=4,
    max_position_embeddings=32,
    init_method_std=0.05,  # large, so that what a token sees shows in the loss
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
DROPOUT = dataclasses.replace(SHAPE, hidden_dropout=0.1, attention_dropout=0.1)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    if device.capability() < (9, 0):
        pytest.skip("cuDNN takes packed documents from compute capability 9.0 on")
    made = Workshop(tmp_path_factory.mktemp("made"))
    made.set_up(SHAPE)
    return made


def loss_and_gradients(model, calls):
    """The losses of all labels in a row, and every parameter's gradient of their sum."""
    model.zero_grad(set_to_none=True)
    found = torch.cat(
        [model(tokens, positions, **options).reshape(-1) for tokens, positions, options in calls]
    )
    found.sum().backward()
    return found.detach().cpu(), {name: p.grad.float().cpu() for name, p in model.named_parameters()}


def alone(batch, positions):
    """The calls that give each document to the model by itself."""
    tokens, labels = (batch[name].reshape(-1) for name in ("tokens", "labels"))
    starts = np.flatnonzero(positions == 0).tolist()
    options = {"attention_mask": None}
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        yield tokens[None, start:end], None, options | {"labels": labels[None, start:end]}


@pytest.mark.parametrize("dtype, cosine, atol", [("bf16", 0.999, 0.05), ("fp32", 0.999_99, 2e-3)])
def test_a_packed_document_has_the_loss_and_the_gradient_that_it_has_alone(workshop, dtype, cosine, atol):
    job = TrainJob.load(workshop.job(f"packed_{dtype}", SHAPE, dtype=dtype, document_mask=True))
    with parallel.model_parallel() as layout:
        model = store.load_model(Path(job.init), ParallelConfig(), dtype=DTYPES[dtype])
        batch = next(Batches(job, layout).train(0))
        assert takes_packed() and batch["tokens"].shape == (1, 64)
        packed = [(batch["tokens"], batch["positions"], {"labels": batch["labels"], **batch["attention"]})]
        plain = {"labels": batch["labels"].view(2, 32), "attention_mask": None}
        found, gradients = loss_and_gradients(model, packed)
        positions = batch["positions"].flatten().cpu().numpy()
        expected, expected_gradients = loss_and_gradients(model, alone(batch, positions))
        unmasked, _ = loss_and_gradients(model, [(batch["tokens"].view(2, 32), None, plain)])
    assert (positions == 0).sum() > 2  # documents begin inside of sequences too
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)
    for name, gradient in expected_gradients.items():
        other = gradients[name]
        assert torch.nn.functional.cosine_similarity(other.flatten(), gradient.flatten(), dim=0) > cosine, (
            name
        )
    within = positions != np.tile(np.arange(32), 2)
    assert (unmasked - expected).abs()[within].mean() > 4 * (found - expected).abs().mean()
    assert (unmasked - expected).abs()[within].mean() > 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("granularity", [None, "full", "selective"])
def test_training_with_dropout_goes_on_in_every_form(workshop, precision, granularity):
    layout, optim = ParallelConfig(recompute_granularity=granularity), OptimConfig(lr=1e-5)
    options = {"layout": layout, "dtype": "bf16", "optim": optim}
    if precision == "fp8":
        options["fp8"] = FP8Config(recipe="delayed")
    folder = workshop.job(f"{precision}_{granularity}", DROPOUT, document_mask=True, train_iters=3, **options)
    train(TrainJob.load(folder))
    found = losses(folder)
    assert found.keys() == {(name, n) for name in ("loss", "valid_loss") for n in (1, 2, 3)}
    assert all(loss == pytest.approx(found["loss", 1], abs=0.5) for loss in found.values())  # small steps


def test_the_mask_changes_the_loss(workshop):
    folders = [
        workshop.job(f"mask_{mask}", SHAPE, dtype="bf16", document_mask=mask, eval_sequences=64)
        for mask in (False, True)
    ]
    for folder in folders:
        train(TrainJob.load(folder))
    without, with_mask = (losses(folder) for folder in folders)
    assert with_mask.keys() == without.keys()
    assert with_mask["loss", 1] != without["loss", 1]
