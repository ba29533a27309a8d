"""Sparse models on a GPU, whose moe_experts compute together: the numbers of other ways, and training."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.megatron_cpu import (
    VOCAB_SIZE,
    Workshop,
    checkpoint_tensors,
    gradients,
    losses,
    moved,
    write_seed_model,
)
from tests.helpers.weights import assert_same_weights
from tests.helpers.workers import ROOT
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.merge.upcycle import GateStart, upcycle_models
from xelm_nemo.model.config import ModelConfig, ParallelConfig
from xelm_nemo.model.gpt import build_model

pytestmark = pytest.mark.gpu
XGLM = ModelConfig(
    num_layers=2,
    hidden_size=128,
    ffn_hidden_size=512,
    num_attention_heads=2,
    max_position_embeddings=128,
    init_method_std=0.05,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
SHAPES = {"xglm": XGLM, "opt": dataclasses.replace(XGLM, architecture="opt", activation="relu")}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
# A process without a GPU, and as if Transformer Engine, whose optimizer is for GPUs alone, were not there.
ON_CPU = """
import sys
sys.modules["transformer_engine"] = None
from pathlib import Path
from tests.gpu.test_sparse import save_again
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
model, *jobs = map(Path, sys.argv[1:])
for job in jobs:
    train(TrainJob.load(job))
save_again(model)
"""
CAPACITIES = {"dropless": None, "capacity": 1.0}


@pytest.fixture(scope="module", params=SHAPES)
def workshop(request, tmp_path_factory):
    """Tokens, a dense model, and a sparse one of four different models."""
    workshop, shape = Workshop(tmp_path_factory.mktemp(request.param)), SHAPES[request.param]
    workshop.set_up(shape)
    models = {"seed": workshop.folder / "seed_model"}
    for seed in (2, 3, 4):
        models[str(seed)] = workshop.folder / f"model{seed}"
        write_seed_model(models[str(seed)], shape, seed=seed)
    upcycle(models, workshop.folder / "sparse", gate_init="uniform")
    return workshop


def upcycle(models, output, *, gate_init="normal", **settings):
    gate = GateStart(gate_init)
    upcycle_models(models, output, Recipe("model", {}), gate=gate, num_moe_experts=4, **settings)
    return output


def sparse_job(workshop, name, *, changes=None, **settings):
    source = workshop.folder / "sparse"
    shape = dataclasses.replace(load_facts(source).shape, **changes or {})
    folder = workshop.job(name, shape, **settings)
    dataclasses.replace(TrainJob.load(folder), init=str(source)).save()
    return folder


def some_tokens():
    return torch.randint(VOCAB_SIZE, (4, 48), generator=torch.Generator().manual_seed(3)).cuda()


def logits(folder):
    with parallel.model_parallel(), torch.no_grad():
        return store.load_model(folder, ParallelConfig()).eval().logits(some_tokens())


@pytest.mark.parametrize("topk", [2, 4])
def test_an_upcycled_model_gives_the_dense_models_logits(workshop, tmp_path, topk):
    dense = workshop.folder / "seed_model"
    sparse = upcycle({"dense": dense}, tmp_path / "sparse", moe_router_topk=topk)
    torch.testing.assert_close(logits(sparse), logits(dense), atol=1e-3, rtol=1e-3)


def found_by(workshop, *, grouped):
    """Losses of a BF16 model in training, and gradients of what comes before and behind its moe_experts."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    source, numbers = workshop.folder / "sparse", {"vocab_size": VOCAB_SIZE, "dtype": torch.bfloat16}
    with parallel.model_parallel():
        model = build_model(load_facts(source).shape, ParallelConfig(), grouped=grouped, **numbers)
        store.load_weights(model, source)
        sparse = model.decoder.layers[1].mlp
        assert type(sparse.experts).__name__ == ("GroupedExperts" if grouped else "SequentialMLP")
        tokens = some_tokens()
        MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=tokens.device))  # as Megatron's schedules do
        loss = model.train()(tokens, None, None, labels=tokens.roll(-1, 1))
        loss.mean().backward()
        parameters = [sparse.router.weight, model.embedding.word_embeddings.weight]
        return [loss.detach().float(), *(parameter.grad.float() for parameter in parameters)]


def test_together_moe_experts_find_what_they_find_one_after_another(workshop):
    for found, expected in zip(
        *(found_by(workshop, grouped=choice) for choice in (True, False)), strict=True
    ):
        assert found.isfinite().all()
        assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) >= 0.999


def save_again(folder):
    """Load a model folder and save it as `again` beside it."""
    with parallel.model_parallel():
        model = store.load_model(folder, ParallelConfig())
        store.save_model(folder.with_name("again"), model, load_facts(folder), Recipe("model", {}))


def cosines(found, expected):
    """Tensor name -> the cosine of the angle between both."""
    assert found.keys() == expected.keys()
    return {
        name: torch.nn.functional.cosine_similarity(found[name].flatten(), tensor.flatten(), dim=0).item()
        for name, tensor in expected.items()
    }


def test_a_step_in_float32_is_that_of_a_cpu_and_each_reads_the_others_model(workshop):
    here, there = (
        [
            sparse_job(workshop, f"{place}_{name}", changes={"moe_expert_capacity_factor": capacity})
            for name, capacity in CAPACITIES.items()
        ]
        for place in ("gpu", "cpu")
    )
    for folder in here:
        train(TrainJob.load(folder))
    command = [sys.executable, "-c", ON_CPU, here[0] / "model", *there]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(here, there, strict=True):
        # Sums differ in order, and may send a token to another moe_expert.
        assert losses(ours) == pytest.approx(losses(theirs), rel=2e-3)
        norms = [read_metrics(folder / METRICS)[0]["grad_norm"] for folder in (ours, theirs)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)
        found = cosines(gradients(ours, 1), gradients(theirs, 1))
        assert {name: cosine for name, cosine in found.items() if not cosine >= 0.99} == {}
    save_again(there[0] / "model")
    for folder in (here[0], there[0]):
        assert_same_weights(folder / "again", folder / "model")


@pytest.mark.parametrize("capacity", CAPACITIES.values(), ids=CAPACITIES)
def test_bf16_training_with_dropout_learns(workshop, capacity):
    changes = DROPOUT | {"moe_expert_capacity_factor": capacity}
    settings = {"dtype": "bf16", "train_iters": 12, "save_interval": 12, "eval_interval": 12}
    folder = sparse_job(workshop, f"learning_{capacity}", changes=changes, **settings)
    train(TrainJob.load(folder))
    lines = [line for line in read_metrics(folder / METRICS) if "loss" in line]
    assert len(lines) == 12 and all(line["grad_norm"] > 0 for line in lines)
    assert max(line["loss"] for line in lines[-3:]) < lines[0]["loss"]
    assert all((line["moe_dropped"] > 0) == (capacity is not None) for line in lines)
    sparse = workshop.folder / "sparse"
    start, end = (checkpoint_tensors(place / "weights") for place in (sparse, folder / "model"))
    experts = [name for name in start if "mlp.experts" in name]
    assert len(experts) == 4 and start.keys() == end.keys()
    for name in experts:
        assert all((end[name][number] != start[name][number].bfloat16()).any() for number in range(4)), name


def test_a_resumed_run_and_one_that_recomputes_end_with_the_same_bits(workshop):
    changes = DROPOUT | {"moe_expert_capacity_factor": 1.0}
    settings = {
        "dtype": "bf16",
        "deterministic": True,
        "train_iters": 4,
        "save_interval": 2,
        "eval_interval": 4,
    }
    layouts = {"whole": ParallelConfig(), "recomputed": ParallelConfig(recompute_granularity="full")}
    whole, recomputed = (
        sparse_job(workshop, name, changes=changes, layout=layout, **settings)
        for name, layout in layouts.items()
    )
    train(TrainJob.load(whole))
    train(TrainJob.load(recomputed))
    resumed = moved(whole, ParallelConfig(), name="resumed", without=["iter_0000004"])
    train(TrainJob.load(resumed))
    for folder in (resumed, recomputed):
        assert losses(folder) == losses(whole)
        assert_same_weights(folder / "model", whole / "model")
