"""How a real model's documents stand together in a batch is no matter to their scores."""

import contextlib
import dataclasses
import random

import pytest
import torch

from tests.helpers.held_out import noting, random_documents
from tests.helpers.megatron_cpu import write_seed_model
from tests.helpers.packed_attention import packed_on_a_cpu
from xelm_nemo import parallel
from xelm_nemo.evaluation.passes import Pass
from xelm_nemo.evaluation.scoring import ModelSource, Scores
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.evaluate import _load

SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=16,
    init_method_std=0.5,  # so that every token seen moves a score by more than the tolerance
)


SHAPES = {"xglm": SHAPE, "opt": dataclasses.replace(SHAPE, architecture="opt", activation="relu")}


@pytest.fixture(scope="module", params=SHAPES)
def model_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    write_seed_model(folder, SHAPES[request.param])
    return folder


WAYS = {"padded": contextlib.nullcontext, "masked": contextlib.nullcontext, "packed": packed_on_a_cpu}


@pytest.mark.parametrize("stride", [16, 5])
@pytest.mark.parametrize("way", WAYS)
def test_batches_padding_and_packing_change_no_score_of_a_model_with_attention(
    model_folder, tmp_path, stride, way
):
    lengths = [2, 17, 9, 3, 30, 16, 12, 2, 24, 17]  # the context and a token, and longer ones, among them
    documents = random_documents(lengths, random.Random(0))
    with parallel.model_parallel(alone=True):
        together = []  # how many texts a row had
        model = noting(_load(model_folder, 1), together)

        def scores(batch_tokens, *, packs):
            how = Pass(16, stride, batch_tokens, "cpu", tmp_path)
            source = ModelSource("any", "", lambda: model, packs=packs)
            return torch.from_numpy(Scores(source, documents, how).compute(model))

        ids = torch.tensor([documents[1].ids])
        moved = model(ids[:, 1:-1], ids[:, 2:])[:, -1] - model(ids[:, :-1], ids[:, 1:])[:, -1]
        assert abs(moved.item()) > 0.01  # by the first token, at the last

        alone = scores(1, packs=False)
        assert len(alone) == sum(lengths) - len(lengths) and alone.std() > 0.01
        with WAYS[way]():
            for batch_tokens in (1, 40, 10_000):
                found = scores(batch_tokens, packs=way != "padded")
                torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        assert (max(together) > 5) == (way != "padded")
