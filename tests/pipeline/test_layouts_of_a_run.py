"""A whole run at each layout of two ranks measures what it measures on one."""

import json
import math
import shutil

import pytest

from tests.helpers.commands import SMALL, run_well

pytestmark = pytest.mark.slow

# Without dropout, whose masks depend on the layout, and at the full rate from the first step on, so that
# weights that were not trained, or not on the same sequences, show in every perplexity.
SETTINGS = [*SMALL, "model.hidden_dropout=0", "model.attention_dropout=0", "optim.lr_warmup_iters=0"]
RTOL = 1e-3


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A run folder up to its token shards, which no layout changes."""
    folder = tmp_path_factory.mktemp("layouts") / "tokens"
    run_well("shard", *SETTINGS, f"output={folder}")
    return folder


@pytest.fixture(scope="module")
def on_one_rank(tokens):
    return perplexities(tokens, "single")


def perplexities(tokens, layout):
    """Train and evaluate in a copy of the folder; the perplexity of every model and ensemble."""
    folder = tokens.with_name(layout)
    shutil.copytree(tokens, folder)
    run_well("train", *SETTINGS, f"parallel={layout}", "finish_with=[evaluate]", f"output={folder}")
    models = json.loads((folder / "evaluation/result.json").read_text())["models"]
    return {
        model["name"]: math.exp(model["overall"]["nats"] / model["overall"]["num_tokens"]) for model in models
    }


def test_models_on_one_rank_differ_by_more_than_the_tolerance(on_one_rank):
    experts = [on_one_rank[name] for name in ("expert0", "expert1", "dense")]
    assert all(a != pytest.approx(b, rel=10 * RTOL) for a in experts for b in experts if a is not b)


@pytest.mark.parametrize("layout", ["tp2_sp", "pp2", "dp2"])
def test_layout_changes_no_perplexity(tokens, on_one_rank, layout):
    assert perplexities(tokens, layout) == pytest.approx(on_one_rank, rel=RTOL)
