"""Jobs are real processes; the workers are small modules that the tests write."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from xelm_nemo.errors import LaunchError, Stopped
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.local import LAUNCHER, die_with_launcher, run_jobs

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
devices = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
(folder / f"rank{os.environ['RANK']}").write_text(f"{os.environ['WORLD_SIZE']} {devices}")
if folder.name.startswith("bad"):
    print("something happened", file=sys.stderr)
    print("error: optim.lr=9 explodes; lower it.", file=sys.stderr)
    sys.exit(2)
if folder.name == "killed":
    os.kill(os.getpid(), 9)
if folder.name.startswith("half") and os.environ["RANK"] == "1":
    sys.exit(3)
if folder.name.startswith("half"):
    time.sleep(60)
"""

PATIENT_WORKER = """
import pathlib, sys, time
from xelm_nemo.launch import signals
folder = pathlib.Path(sys.argv[1])
with signals.caught(["USR2"]) as stop:
    starts = len(list(folder.glob("start*")))
    (folder / f"start{starts}").touch()
    deadline = time.monotonic() + 60
    while not stop and not (folder / "enough").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
sys.exit(75 if stop else 0)
"""


BOUND_WORKER = """
import os, time
from xelm_nemo.launch.local import die_with_launcher
die_with_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
from xelm_nemo.launch.local import LAUNCHER
environment = os.environ | {{LAUNCHER: str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {BOUND_WORKER!r}], env=environment)
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    (tmp_path / "toy_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
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


def test_error_of_an_earlier_run_is_not_repeated(job, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half/train.log").write_text("error: long ago\n")
    with pytest.raises(LaunchError, match=r"half failed with exit code 3") as caught:
        run_jobs([job("half", 2)], max_parallel=1, gpus=0)
    assert "long ago" not in str(caught.value)


def test_killed_worker_is_said_to_be_killed(job):
    with pytest.raises(LaunchError, match="killed was killed by SIGKILL, perhaps for want of memory"):
        run_jobs([job("killed")], max_parallel=1, gpus=0)


def test_rank_that_fails_ends_the_others(job):
    with pytest.raises(LaunchError, match="half failed"):
        run_jobs([job("half", 2)], max_parallel=1, gpus=0)


def test_jobs_get_gpus_of_their_own(job):
    jobs = [job("one", 2), job("two", 2)]
    run_jobs(jobs, max_parallel=2, gpus=4)
    seen = {(one.folder / f"rank{rank}").read_text() for one in jobs for rank in (0, 1)}
    assert seen == {"2 0,1", "2 2,3"}


def test_only_the_gpus_that_were_given_are_used(job, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    run_jobs([job("one"), job("two")], max_parallel=2, gpus=2)
    assert {(job(name).folder / "rank0").read_text() for name in ("one", "two")} == {"1 5", "1 7"}


@pytest.fixture
def patient(tmp_path, monkeypatch):
    """A job that runs until it is stopped or told that it is enough."""
    (tmp_path / "patient.py").write_text(PATIENT_WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    before = signal.getsignal(signal.SIGUSR2)
    yield lambda name: Job(name, "patient", tmp_path / name)
    signal.signal(signal.SIGUSR2, before)


def workers():
    """The processes of jobs; earlier tests of this session may have left helpers of multiprocessing."""
    return [child for child in psutil.Process().children() if "patient" in child.cmdline()]


def test_worker_that_a_signal_stopped_is_started_again(patient):
    job, told = patient("one"), []

    def tick():
        if not told and (job.folder / "start0").exists():
            (worker,) = workers()
            worker.send_signal(signal.SIGUSR2)
            told.append(worker)
        if (job.folder / "start1").exists():
            (job.folder / "enough").touch()

    run_jobs([job], max_parallel=1, gpus=0, on_tick=tick)
    assert told and not (job.folder / "start2").exists()


def test_signal_to_the_launcher_stops_every_job_and_starts_no_other(patient):
    jobs, told = [patient(name) for name in ("one", "two", "three")], []

    def tick():
        if not told and all((job.folder / "start0").exists() for job in jobs[:2]):
            os.kill(os.getpid(), signal.SIGUSR2)
            told.append(True)

    with pytest.raises(Stopped, match="stopped by SIGUSR2; what ran is saved"):
        run_jobs(jobs, max_parallel=2, gpus=0, on_tick=tick)
    assert not jobs[2].folder.exists()
    assert not workers()


def test_progress_is_asked_for_while_jobs_run(job):
    ticks = []
    run_jobs([job("one")], max_parallel=1, gpus=0, on_tick=lambda: ticks.append(1))
    assert ticks


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_worker_dies_with_the_launcher():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert is_running(worker)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_running(worker):
        assert time.monotonic() < deadline, "the worker outlived its launcher"
        time.sleep(0.02)


def test_worker_that_no_launcher_started_minds_nothing(monkeypatch):
    monkeypatch.delenv(LAUNCHER, raising=False)
    die_with_launcher()


def is_running(pid):
    """Whether the process lives; a dead one whose exit code nobody took does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- Jobs that come after others ---------------------------------------------------------------------


def test_job_begins_when_the_one_before_it_has_finished_and_not_when_others_have(tmp_path, monkeypatch):
    (tmp_path / "toy_worker.py").write_text(PATIENT_WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    parent, other = (Job(name, "toy_worker", tmp_path / name) for name in ("parent", "other"))
    child = Job("child", "toy_worker", tmp_path / "child", after="parent")
    seen = []

    def on_tick():
        started = {job.name for job in (parent, other, child) if list(job.folder.glob("start*"))}
        if started != (seen[-1] if seen else None):
            seen.append(started)
        if started == {"parent", "other"}:
            (parent.folder / "enough").touch()
        if "child" in started:
            (child.folder / "enough").touch()
            (other.folder / "enough").touch()

    run_jobs([child, parent, other], max_parallel=3, gpus=0, on_tick=on_tick)
    assert seen[-2:] == [{"parent", "other"}, {"parent", "other", "child"}]


def test_what_comes_after_a_failed_job_is_not_begun_and_the_rest_is(job):
    bad, good = job("bad"), job("good")
    child = Job("child", "toy_worker", bad.folder.parent / "child", after="bad")
    grandchild = Job("grandchild", "toy_worker", bad.folder.parent / "grandchild", after="child")
    said = r"bad failed .*; child was not begun, for bad failed; grandchild was not begun, for child failed"
    with pytest.raises(LaunchError, match=said):
        run_jobs([bad, child, grandchild, good], max_parallel=1, gpus=0)
    assert (good.folder / "rank0").exists() and not child.folder.exists()
