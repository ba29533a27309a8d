"""The benchmark of the router runs, and what it compares computes the same."""

import json

import pytest

from xelm_nemo.bench import registry, run
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
