"""Models that two GPUs score, each its own or one together, have the scores that one GPU gives them."""

import os

import numpy as np
import pytest
import torch

from tests.helpers.held_out import mixed_documents
from tests.helpers.megatron_cpu import free_ports, on_ranks, write_seed_model
from xelm_nemo.files import load_arrays
from xelm_nemo.model.config import ModelConfig

pytestmark = pytest.mark.multigpu
CONTEXT = 256
NAMES = [f"expert{k}" for k in range(3)]
SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=256,
    ffn_hidden_size=1024,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT,
    init_method_std=0.1,  # so that what a token sees moves its score
)
LAYOUTS = {"alone": (1, 1), "each_its_own": (2, 1), "together": (2, 2)}  # ranks, and ranks of one model


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Layout -> the folder of its log-probabilities."""
    models = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        write_seed_model(models / name, SHAPE, seed=seed, dtype="bf16")
    folders = {}
    for layout, (ranks, tp) in LAYOUTS.items():
        folders[layout] = models.with_name(layout)
        on_ranks(ranks, score_on_ranks, models, folders[layout], tp, *free_ports(1))
    return folders


def score_on_ranks(models, folder, tp, port):
    """What each rank does, as the command."""
    from xelm_nemo import device, parallel
    from xelm_nemo.ensemble.placement import Team
    from xelm_nemo.evaluation.passes import Pass
    from xelm_nemo.evaluation.scoring import ModelSource, Scores, run_models
    from xelm_nemo.model.documents import can_pack
    from xelm_nemo.stages.evaluate import _load

    os.environ["MASTER_PORT"] = str(port)
    documents = mixed_documents(CONTEXT)
    with parallel.model_parallel(tensor_model_parallel_size=tp) as layout:
        how = Pass(CONTEXT, CONTEXT // 2, 2048, device.device(), folder)
        packs = can_pack(SHAPE, torch.bfloat16)
        sources = [
            ModelSource(name, name, lambda name=name: _load(models / name, tp), packs=packs) for name in NAMES
        ]
        team = Team(layout.dp_rank, layout.dp_size, layout.rank % tp == 0, parallel.barrier)
        run_models([Scores(source, documents, how) for source in sources], team)


def log_p(folder, name):
    return load_arrays(folder / f"{name}.safetensors")["log_p"]


@pytest.mark.parametrize("name", NAMES)
def test_each_gpu_with_models_of_its_own_gives_the_bits_of_one(scored, name):
    found, expected = (log_p(scored[layout], name) for layout in ("each_its_own", "alone"))
    assert expected.std() > 0.1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_two_gpus_with_one_model_give_the_perplexity_of_one(scored, name):
    found, expected = (log_p(scored[layout], name) for layout in ("together", "alone"))
    assert np.exp(found.mean() - expected.mean()) == pytest.approx(1, abs=1e-3)
    assert np.abs(found - expected).max() < 0.2
