"""The cases that are whole jobs run on a CPU, and what they compare gives the same."""

import json

import pytest

from xelm_nemo.bench import registry, run
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ConfigError


@pytest.fixture
def rows_of(tmp_path):
    def rows(*words):
        run.run(registry.parse([*words, "rounds=1", f"json={tmp_path / 'rows.jsonl'}"]))
        return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]

    return rows


@pytest.fixture
def corpus(tmp_path):
    """Two files of documents."""
    texts = [row["text"] for row in documents()][:60]
    for name, some in {"a": texts[:40], "b": texts[40:]}.items():
        path = tmp_path / "corpus" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return tmp_path / "corpus"


def test_sharding_writes_megatrons_tokens_and_both_are_timed(rows_of, corpus):
    megatron, ours = rows_of("shards", f"corpus={corpus}", "vocab=2048")
    assert (megatron["provider"], ours["provider"]) == ("megatron", "ours")
    assert megatron["tokens"] == ours["tokens"] > 60
    assert ours["bytes"] == sum(path.stat().st_size for path in corpus.iterdir())
    assert ours["errors"] == {"tokens": 0} and ours["speed_up"] > 0 and megatron["speed_up"] == 1


def test_features_are_scikit_learns_bit_for_bit_and_all_are_timed(rows_of, corpus):
    rows = rows_of("featurise", f"corpus={corpus}", "verb=fit,transform", "analyzer=word,char_wb")
    word = {"upstream", "scikit_learn", "ours", "ours_2_threads"}
    for verb in ("fit", "transform"):
        for analyzer, providers in {"word": word, "char_wb": word - {"upstream"}}.items():
            found = [row for row in rows if (row["verb"], row["analyzer"]) == (verb, analyzer)]
            assert {row["provider"] for row in found} == providers
            assert all(row["p50_ms"] > 0 and row["gb_per_s"] > 0 for row in found)
            ours = [row for row in found if row["provider"].startswith("ours")]
            assert all(row["errors"] == {"bits": 0} and row["terms"] > 100 for row in ours)


def test_documents_get_upstreams_clusters_and_both_are_timed(rows_of, corpus):
    rows = rows_of("assign", f"corpus={corpus}", "clusters=4")
    for verb in ("chain", "files"):
        found = [row for row in rows if row["verb"] == verb]
        assert [row["provider"] for row in found] == ["upstream", "ours", "ours_2_threads"]
        assert all(row["errors"] == {"clusters": 0} and row["documents"] == 60 for row in found)
        assert all(row["p50_ms"] > 0 and row["gb_per_s"] > 0 for row in found)


def test_clusters_are_as_large_as_each_other_and_cost_is_compared(rows_of):
    upstream, ours = rows_of("kmeans", "documents=400", "clusters=4", "dim=8")
    assert (upstream["provider"], ours["provider"]) == ("upstream", "ours")
    assert upstream["errors"] == {"cost": 0} and ours["errors"]["cost"] < 0.2
    assert (ours["smallest"], ours["largest"]) == (100, 100)
    assert ours["calls_of"]["balanced_assignment"] > 0 and ours["seconds_of"]["balanced_assignment"] >= 0


def test_corpus_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"corpus='.*none' is neither a \.jsonl file nor a folder of them"):
        run.run(registry.parse(["featurise", f"corpus={tmp_path / 'none'}"]))


def test_kind_of_work_that_is_none_is_named():
    for case, verbs in {"featurise": r"'fit', 'transform'", "assign": r"'chain', 'files'"}.items():
        with pytest.raises(ConfigError, match=rf"verb='sing' is not one; use one of \[{verbs}\]"):
            run.run(registry.parse([case, "verb=sing"]))
