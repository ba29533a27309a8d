"""The benchmark of the router runs, and what it compares computes the same."""

import json

import pytest

from xelm_nemo.bench import prefix_router, registry, run
from xelm_nemo.errors import ConfigError

SMALL = ["documents=2", "experts=3", "vocab=2000", "rounds=1"]


def test_every_provider_is_timed_and_right(tmp_path):
    words = ["prefix_router", "tokens=40", "analyzer=word,char_wb", *SMALL]
    run.run(registry.parse([*words, f"json={tmp_path / 'rows.jsonl'}"]))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    names = ["upstream", "ours", "weights_alone"]
    assert [(row["analyzer"], row["provider"]) for row in rows] == [
        (analyzer, name) for analyzer in ("word", "char_wb") for name in names
    ]
    for row in rows:
        assert row["p50_ms"] > 0
        assert row["errors"]["largest"] < (1e-5 if row["provider"] == "upstream" else 1e-6)


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="analyzer='letters' is not one"):
        run.run(registry.parse(["prefix_router", "analyzer=letters", *SMALL]))
    with pytest.raises(ConfigError, match="tokens=9000000: the corpus has"):
        run.run(registry.parse(["prefix_router", "tokens=9000000", *SMALL]))


def test_the_way_by_the_kernel_gives_the_same_weights():
    sizes = {"tokens": 30, "documents": 2, "experts": 3, "analyzer": "char_wb", "corpus": "udhr"}
    inputs = prefix_router.checked_inputs(sizes | {"tokenizer": "trained", "vocab": 2000})
    step = prefix_router.ours_on_device(inputs)
    step()
    assert prefix_router.errors(inputs, step)["largest"] < 1e-6
