"""The whole pipeline on corpora that lack something: documents, languages, validation in a cluster."""

import json

import pytest

from tests.helpers.commands import SMALL, refuse, run_well
from xelm_nemo.checkpoint.facts import load_facts

pytestmark = pytest.mark.slow

ENGLISH = "All human beings are born free and equal in dignity and rights."
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"


def write_corpus(folder, **splits):
    """A corpus folder whose splits hold the given rows."""
    for split, rows in splits.items():
        shard = folder / split / "00000"
        shard.mkdir(parents=True)
        (shard / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluate(tmp_path, rows, *settings):
    """Run everything on a corpus of these rows; the run folder and the perplexity of every model."""
    corpus, folder = write_corpus(tmp_path / "corpus", **rows), tmp_path / "run"
    places = [f"corpus.path={corpus}", f"output={folder}", "finish_with=[evaluate]"]
    run_well("train", *SMALL, *settings, *places)
    models = json.loads((folder / "evaluation/result.json").read_text())["models"]
    return folder, {model["name"]: model["overall"]["perplexity"] for model in models}


def test_one_cluster_of_one_document_a_split(tmp_path):
    rows, settings = [{"text": ENGLISH, "lang": "en"}], ["clustering.num_clusters=1", "dense.lr=null"]
    _, perplexity = evaluate(tmp_path, {"train": rows, "valid": rows, "test": rows}, *settings)
    # The one expert and the dense model see the same documents in the same order, at the same rate.
    assert perplexity["expert0"] == perplexity["dense"] == pytest.approx(perplexity["ensemble"])


def test_corpus_without_languages(tmp_path):
    rows = [{"text": text} for text in (ENGLISH, JAPANESE) for _ in range(4)]
    _, perplexity = evaluate(tmp_path, {"train": rows, "valid": rows, "test": rows})
    assert {"expert0", "expert1", "dense", "ensemble"} <= perplexity.keys()
    assert "top-1 by language" not in perplexity


def test_cluster_without_validation_documents(tmp_path):
    both = [
        {"text": text, "lang": lang} for lang, text in (("en", ENGLISH), ("ja", JAPANESE)) for _ in range(4)
    ]
    folder, _ = evaluate(tmp_path, {"train": both, "valid": both[:1], "test": both})
    counts = json.loads((folder / "tokens/counts.json").read_text())["valid"]
    without = next(cluster for cluster, count in enumerate(counts) if count["documents"] == 0)
    for name in ("seed_model", "experts/round0/dense", f"experts/round0/expert{1 - without}"):
        assert "valid_loss" in (folder / name / "metrics.jsonl").read_text()
    job = folder / f"experts/round0/expert{without}"
    assert "valid_loss" not in (job / "metrics.jsonl").read_text()
    assert (job / "train.log").read_text().count("no validation document") == 1


def test_seed_model_of_more_words_than_the_tokenizer(tmp_path, capsys):
    rows = [{"text": text, "lang": "en"} for text in (ENGLISH, JAPANESE) for _ in range(4)]
    settings = ["seed_model.vocab_size=3000", "tokenizer.vocab_size=400"]
    folder, perplexity = evaluate(tmp_path, {"train": rows, "valid": rows, "test": rows}, *settings)
    assert perplexity["ensemble"] < 3000
    ids = json.loads((folder / "tokens/counts.json").read_text())["vocab_size"]
    assert 20 < ids <= 400
    assert load_facts(folder / "experts/round0/expert0/model").vocab_size == 3000
    given = [
        f"corpus.path={tmp_path / 'corpus'}",
        f"tokenizer.path={folder / 'tokenizer'}",
        f"output={tmp_path / 'b'}",
    ]
    line = refuse(capsys, *SMALL, *given, "seed_model.vocab_size=20", verb="branch")
    assert f"seed_model.vocab_size=20 is less than the {ids} ids" in line
