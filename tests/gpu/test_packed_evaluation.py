"""Texts that go through a model end to end on a GPU have the scores that they have alone."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers.held_out import mixed_documents, noting
from tests.helpers.megatron_cpu import write_seed_model
from xelm_nemo import device, parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.evaluation.passes import Pass
from xelm_nemo.evaluation.scoring import ModelSource, Scores
from xelm_nemo.model.config import ModelConfig, ParallelConfig
from xelm_nemo.model.documents import can_pack

pytestmark = pytest.mark.gpu
CONTEXT = 512
SHAPE = ModelConfig(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=1024,
    num_attention_heads=4,
    max_position_embeddings=CONTEXT,
    init_method_std=0.1,  # so that what a token sees moves its score
)


SHAPES = {"xglm": SHAPE, "opt": dataclasses.replace(SHAPE, architecture="opt", activation="relu")}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request, tmp_path_factory):
    if device.capability() < (9, 0):
        pytest.skip("cuDNN takes packed documents from compute capability 9.0 on")
    folder = tmp_path_factory.mktemp("model") / "model"
    write_seed_model(folder, SHAPES[request.param])
    return folder


def scores(model, folder, *, packs, batch_tokens):
    """Of all tokens; what is packed is seen to be."""
    together = []
    model = noting(model, together)
    how = Pass(CONTEXT, CONTEXT // 2, batch_tokens, device.device(), folder)
    source = ModelSource("any", "", lambda: model, packs=packs)
    found = Scores(source, mixed_documents(CONTEXT), how).compute(model)
    assert (max(together) > 5) == packs
    return found


@pytest.mark.parametrize("batch_tokens", [600, 16_384])
def test_packing_and_padding_change_no_perplexity_in_bf16(folder, tmp_path, batch_tokens):
    with parallel.model_parallel(alone=True):
        assert can_pack(SHAPE, torch.bfloat16) and not can_pack(SHAPE, torch.float32)
        model = store.load_model(folder, ParallelConfig(), dtype=torch.bfloat16).eval().target_log_prob
        exact = store.load_model(folder, ParallelConfig(), dtype=torch.float32).eval().target_log_prob
        truth = scores(exact, tmp_path, packs=False, batch_tokens=1)
        alone = scores(model, tmp_path, packs=False, batch_tokens=1)
        packed = scores(model, tmp_path, packs=True, batch_tokens=batch_tokens)
        padded = scores(model, tmp_path, packs=False, batch_tokens=batch_tokens)
    assert truth.std() > 0.1
    for found in (packed, padded):
        assert np.exp(found.mean() - alone.mean()) == pytest.approx(1, abs=1e-3)
    # As far from the exact ones as documents alone are, and not further: nothing of a neighbour is seen.
    assert np.abs(packed - truth).max() < 2 * np.abs(alone - truth).max() + 0.01
    assert np.abs(packed - truth).mean() < 1.1 * np.abs(alone - truth).mean() + 1e-4


def test_padding_and_batches_change_no_score_in_float32(folder, tmp_path):
    with parallel.model_parallel(alone=True):
        model = store.load_model(folder, ParallelConfig(), dtype=torch.float32).eval().target_log_prob
        alone = scores(model, tmp_path, packs=False, batch_tokens=1)
        together = scores(model, tmp_path, packs=False, batch_tokens=16_384)
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=1e-5)
