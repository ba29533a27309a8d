"""SIGKILL at five moments of a run; each time the same command goes on, and the weights come out the same."""

import time

import pytest

from tests.helpers.commands import SMALL, run_well, start
from tests.helpers.weights import read_weights

pytestmark = pytest.mark.slow

MODELS = ("seed_model", "experts/round0/dense", "experts/round0/expert0", "experts/round0/expert1")
# What is on disk at the moment of the kill.
MOMENTS = {
    "while clusters are made": "clusterer",
    "while tokens are written": "tokenizer",
    "between two steps of the seed model": "seed_model/checkpoints/iter_0000002",
    "while an expert is saved": "experts/round0/expert0/checkpoints/.iter_*.part",
    "while models are scored": "log_probs/expert0.safetensors",
}


def kill_when(folder, pattern):
    """Start the run, kill it the moment that something matches the pattern, and see that it was in time."""
    process = start("train", *SMALL, f"output={folder}")
    while not list(folder.glob(pattern)):
        assert process.poll() is None, f"the run ended before {pattern} was there: {process.communicate()[1]}"
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)  # a child that outlives the kill would hold the pipe open


def test_killed_run_ends_with_the_same_weights(tmp_path):
    run_well("train", *SMALL, f"output={tmp_path / 'whole'}")
    for moment, pattern in MOMENTS.items():
        assert not list((tmp_path / "killed").glob(pattern)), f"{moment}: too late to kill"
        kill_when(tmp_path / "killed", pattern)
    run_well("train", *SMALL, f"output={tmp_path / 'killed'}")
    for model in MODELS:
        whole, killed = (read_weights(tmp_path / name / model / "model") for name in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(whole[name].equal(killed[name]) for name in whole), f"{model} differs"
    results = [(tmp_path / name / "evaluation/result.json").read_text() for name in ("whole", "killed")]
    assert results[0] == results[1]
