"""A whole run as one graph of jobs of a real SLURM, up to the evaluation, and a graph that breaks."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, SMALL, run, run_well
from tests.helpers.slurm_cluster import wait_for
from tests.helpers.weights import read_weights
from xelm_nemo.launch.slurm import ACTIVE

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SETTINGS = [
    *SMALL,
    *("launch=slurm", "launch.slurm.gpus_per_rank=0", "launch.slurm.cpus_per_rank=1"),
    *("launch.slurm.ranks_per_node=1", "launch.slurm.mem_gb=3", "launch.slurm.time=30"),
    *("seed_model.train_iters=0", "finish_with=[evaluate]"),
]


@pytest.fixture(scope="module")
def folder(cluster, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_well("train", *SETTINGS, f"output={folder}")
    return folder


def ended_jobs(cluster, name):
    """How the jobs of a run ended, each with what follows the run's name; waits for those that have not."""

    def look():
        shown = cluster.call("squeue", "-h", "-r", "-t", "all", "-o", "%j %T").split()
        rows = zip(shown[::2], shown[1::2], strict=True)
        return [(job.removeprefix(f"{name}-"), state) for job, state in rows if job.startswith(f"{name}-")]

    # A job's last words come before its end.
    wait_for(lambda: {state for _, state in look()}.isdisjoint(ACTIVE), 60, "a job does not end")
    return sorted(look())


def waits_for(folder):
    """The kind of dependency of each script of the first submission, in order."""
    first = min((path.parent for path in folder.glob("launch/*/config.yaml")), key=lambda path: path.name)
    scripts = sorted(first.glob("*_submission.sh"), key=lambda path: int(path.name.partition("_")[0]))
    found = [re.search(r"--dependency=(\w+):", script.read_text()) for script in scripts]
    return [match and match[1] for match in found]


def test_whole_run_is_one_graph_that_ends_with_the_evaluation(cluster, folder):
    names = ["cluster", "shard", "branch", "experts", "experts", "experts", "train"]
    assert ended_jobs(cluster, "whole") == sorted((name, "COMPLETED") for name in names)
    assert waits_for(folder) == [None, "afterok", "afterok", "afterok", "afterany"]
    assert (folder / "evaluation/report.md").is_file()


def test_evaluation_is_a_job_of_its_own_and_trains_nothing(cluster, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("experts/round0/*/model/manifest.json")}
    screen = run_well("evaluate", *SETTINGS, "evaluation.max_docs=3", f"output={folder}")
    assert "ensemble" in screen
    ended = ended_jobs(cluster, "whole")
    assert ("evaluate", "COMPLETED") in ended and len(ended) == 8
    assert json.loads((folder / "evaluation/result.json").read_text())["num_documents"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 3


def test_script_for_sites_where_python_may_not_submit_trains_the_same_expert(cluster, folder, tmp_path):
    expert, script = folder / "experts/round0/expert1", tmp_path / "experts.sbatch"
    shutil.move(expert / "model", tmp_path / "before")
    shutil.rmtree(expert / "checkpoints", ignore_errors=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/xelm16").symlink_to(folder)
    script.write_text((ROOT / "docs/experts.sbatch").read_text().replace("#SBATCH --gpus-per-node=8\n", ""))
    shape = ("--array=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=3G", "--time=30")
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    cluster.call("env", path, "sbatch", f"--chdir={tmp_path}", *shape, script)
    wait_for((expert / "model/manifest.json").is_file, 120, "the script trains nothing")
    one, other = (read_weights(place) for place in (tmp_path / "before", expert / "model"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_what_waits_for_a_stage_that_failed_is_cancelled(cluster, tmp_path):
    starved = ("+launch.slurm.stages.mem=100M", "launch.slurm.max_crashes=0")
    code, _, error = run("train", *SETTINGS, *starved, f"output={tmp_path / 'broken'}")
    last = error.splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and "cluster: " in last
    found = dict(ended_jobs(cluster, "broken"))
    assert found["cluster"] in ("FAILED", "OUT_OF_MEMORY")
    assert {found[name] for name in ("shard", "branch", "experts")} == {"CANCELLED"}
