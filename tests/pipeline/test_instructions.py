"""The whole pipeline on instruction data."""

import json

import pytest

from tests.helpers.commands import SMALL, refuse, run_well
from tests.pipeline.test_small_corpora import ENGLISH, JAPANESE, write_corpus

pytestmark = pytest.mark.slow

ROWS = [
    {"src": f"{asked} {number}", "tgt": answer, "candidates": [], "lang": lang}
    for number in range(6)
    for lang, asked, answer in (("en", "What is said?", ENGLISH), ("ja", "Say it in Japanese.", JAPANESE))
]


def test_instruction_data_is_clustered_sharded_trained_and_evaluated(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", train=ROWS, valid=ROWS[:4])
    places = ["corpus=instructions", f"corpus.path={corpus}", f"output={tmp_path / 'run'}"]
    run_well("train", *SMALL, *places, "finish_with=[evaluate]", "evaluation.stride=16")
    result = json.loads((tmp_path / "run/evaluation/result.json").read_text())
    overall = next(model for model in result["models"] if model["name"] == "ensemble")["overall"]
    assert overall["num_bytes"] == sum(len(f" {row['tgt']}".encode()) for row in ROWS[:4])
    assert len(list((tmp_path / "run/tokens").glob("cluster*/train_sources.safetensors"))) == 2
    assert "valid_loss" in (tmp_path / "run/experts/round0/dense/metrics.jsonl").read_text()
    line = refuse(
        capsys, *SMALL, f"corpus.path={corpus}", "corpus.test_split=valid", f"output={tmp_path / 'b'}"
    )
    assert "for instruction data set corpus.source_key=src corpus.target_key=tgt" in line
