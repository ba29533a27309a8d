"""Jobs are real processes; the workers are small modules that the tests write."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from xelm_nemo.errors import LaunchError
from xelm_nemo.launch.local import Job, run_jobs

WORKER = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
devices = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
(folder / f"rank{os.environ['RANK']}").write_text(f"{os.environ['WORLD_SIZE']} {devices}")
if folder.name.startswith("bad"):
    print("something happened", file=sys.stderr)
    print("error: optim.lr=9 explodes; lower it.", file=sys.stderr)
    sys.exit(2)
if folder.name.startswith("half") and os.environ["RANK"] == "1":
    sys.exit(3)
if folder.name.startswith("half"):
    time.sleep(60)
"""


ORPHAN = """
import time
from xelm_nemo.launch.local import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {ORPHAN!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    (tmp_path / "toy_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, ranks=1: Job(name, "toy_worker", tmp_path / name, ranks)


def test_every_job_runs_on_every_rank(job):
    jobs = [job("one"), job("two", 2), job("three")]
    run_jobs(jobs, max_parallel=2, gpus=0)
    assert (jobs[0].folder / "rank0").read_text() == "1 -"
    assert [(jobs[1].folder / f"rank{rank}").read_text() for rank in (0, 1)] == ["2 -", "2 -"]
    assert (jobs[2].folder / "rank0").exists()


def test_failed_job_stops_no_other_and_its_last_words_are_said(job):
    jobs = [job("bad"), job("good")]
    with pytest.raises(LaunchError, match=r"bad failed \(.*train\.log\): optim\.lr=9 explodes; lower it\."):
        run_jobs(jobs, max_parallel=1, gpus=0)
    assert (jobs[1].folder / "rank0").exists()


def test_rank_that_fails_ends_the_others(job):
    with pytest.raises(LaunchError, match="half failed"):
        run_jobs([job("half", 2)], max_parallel=1, gpus=0)


def test_jobs_get_gpus_of_their_own(job):
    jobs = [job("one", 2), job("two", 2)]
    run_jobs(jobs, max_parallel=2, gpus=4)
    seen = {(one.folder / f"rank{rank}").read_text() for one in jobs for rank in (0, 1)}
    assert seen == {"2 0,1", "2 2,3"}


def test_progress_is_asked_for_while_jobs_run(job):
    ticks = []
    run_jobs([job("one")], max_parallel=1, gpus=0, on_tick=lambda: ticks.append(1))
    assert ticks


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_worker_dies_with_the_process_that_started_it():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.02)


def is_running(pid):
    """Whether the process lives; a dead one whose exit code nobody took does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
