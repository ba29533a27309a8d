"""Transformer Engine's layers on a real GPU: the numbers of Hugging Face's models, and training in BF16."""

import json

import pytest
import torch

from tests.helpers.commands import SMALL, run_well
from tests.helpers.random_opt import random_opt
from tests.helpers.random_xglm import VOCAB_SIZE, random_tokens, random_xglm
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.model.config import ParallelConfig

pytestmark = pytest.mark.gpu

# Sizes that tensor cores take; the odd ones of the CPU tests are not for BF16 GEMMs.
XGLM = {"d_model": 128, "attention_heads": 2, "ffn_dim": 512, "num_layers": 3, "activation_function": "gelu"}
OPT = {"hidden_size": 128, "num_attention_heads": 2, "ffn_dim": 512, "num_hidden_layers": 3}
ORIGINALS = {
    "xglm": lambda: random_xglm(**XGLM),
    "opt": lambda: random_opt(**OPT),
    "opt_like_350m": lambda: random_opt(**OPT, do_layer_norm_before=False, word_embed_proj_dim=64),
}


@pytest.fixture(scope="module", params=ORIGINALS)
def imported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    original = ORIGINALS[request.param]()
    with torch.no_grad():  # weights of a trained model's size, or attention saturates and BF16 means nothing
        for parameter in original.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.25)
    original.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "ours", Recipe("model", {}))
    return original.cuda(), folder / "ours"


def both_logits(imported, dtype):
    original, folder = imported
    tokens = random_tokens(48, batch_size=4).cuda()
    with parallel.model_parallel(), torch.no_grad():
        model = store.load_model(folder, ParallelConfig(), dtype=dtype).eval()
        assert "transformer_engine" in type(model.decoder.layers[0].mlp.linear_fc1).__mro__[1].__module__
        ours = model.logits(tokens).float()
    return ours, original.float()(tokens).logits


def test_float32_logits_are_those_of_hugging_face(imported):
    ours, theirs = both_logits(imported, torch.float32)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)  # TF32 is off; sums differ in order
    assert ours.argmax(-1).equal(theirs.argmax(-1))


def test_bf16_logits_point_the_same_way(imported):
    ours, theirs = both_logits(imported, torch.bfloat16)
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert ours.shape[-1] == VOCAB_SIZE
    assert cosine >= 0.999
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.97


def test_pipeline_runs_in_bf16_and_resumes_nothing_twice(tmp_path):
    arguments = [*SMALL, f"output={tmp_path / 'run'}", "model.hidden_size=64", "model.ffn_hidden_size=128"]
    run_well("train", *arguments)
    facts = json.loads((tmp_path / "run/experts/round0/expert1/model/model.json").read_text())
    assert facts["dtype"] == "bf16"
    lines = (tmp_path / "run/experts/round0/expert1/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert len(losses) == 4 and all(5 < loss < 9 for loss in losses)
    before = (tmp_path / "run/experts/round0/expert1/model/manifest.json").stat().st_mtime_ns
    run_well("train", *arguments)
    assert (tmp_path / "run/experts/round0/expert1/model/manifest.json").stat().st_mtime_ns == before
