"""Rounds as one graph of jobs of a real SLURM: children wait for their parents, and go with them."""

import json

import pytest

from tests.helpers.commands import run, run_beside, run_well
from tests.helpers.weights import read_weights
from tests.pipeline.test_rounds import PLAIN, SIZES, facts, write_corpus
from tests.slurm.test_file_jobs import SLURM

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def shown(folder):
    rows = json.loads(run_well("status", f"output={folder}", "json=true"))
    return {row["model"]: row for row in rows}


def test_children_go_with_a_failed_parent_and_retry_trains_the_line(cluster, tmp_path):
    words = [*PLAIN, *SIZES, "rounds=hmr", "clustering.languages=[en,ja]", "seed_model.train_iters=0"]
    words += [write_corpus(tmp_path / "text", "en", "ja"), *SLURM]
    with run_beside("train", *words, "launch=local", f"output={tmp_path / 'local'}"):
        fail_and_retry(words, tmp_path / "run")
    root = tmp_path / "run/experts/round0/expert0/model"
    assert facts(tmp_path / "run/experts/round1/expert1")["parent"] == str(root)
    ours, theirs = (
        read_weights(tmp_path / name / "experts/round1/expert1/model") for name in ("run", "local")
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def fail_and_retry(words, folder):
    here = [*words, f"output={folder}"]
    run_well("branch", *here, "launch=local")
    index = folder / "tokens/cluster1/train.idx"
    whole = index.read_bytes()
    index.write_bytes(whole[:40])
    code, _, error = run("train", *here, "launch.slurm.max_crashes=0")
    assert code == 2 and "round0-expert0: " in error and "expert0: SLURM job" in error
    states = {name: row["state"] for name, row in shown(folder).items()}
    assert states["round0-expert0"] == "failed" and states["expert0"] in ("failed", "cancelled")
    index.write_bytes(whole)
    run_well("retry", f"output={folder}")
    assert {row["state"] for row in shown(folder).values()} == {"finished"}
