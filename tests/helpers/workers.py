"""The product's own training worker in a process of its own, and its sudden end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.megatron_cpu import checkpoint_tensors, losses
from tests.helpers.weights import assert_same_tensors

ROOT = Path(__file__).resolve().parents[2]


def start_worker(folder):
    """The product's own worker on a job, a world of its own."""
    command = [sys.executable, "-m", "xelm_nemo.expert", folder]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def kill_after(worker, checkpoint):
    """SIGKILL to a worker and all it started, at once when a checkpoint has its name."""
    while not checkpoint.exists():
        assert worker.poll() is None, worker.communicate()[1]
        time.sleep(0.001)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()


def assert_killed_run_ends_as_an_undisturbed_one(workshop, shape, **settings):
    """Kill one of two equal jobs midway and start it again: the same losses and weights, bit for bit.

    Returns:
        What the restarted one logged.
    """
    settings = {"train_iters": 10, "save_interval": 2, **settings}
    killed, whole = (workshop.job(name, shape, **settings) for name in ("killed", "whole"))
    undisturbed, worker = start_worker(whole), start_worker(killed)
    kill_after(worker, killed / "checkpoints/iter_0000006")  # the third: Megatron knows the plan by then
    assert not (killed / "model").exists(), "it was to be killed before its end"
    again = start_worker(killed)
    for process in (undisturbed, again):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert "from iteration 6 to 10" in errors
    assert_same_tensors(*(checkpoint_tensors(folder / "model/weights") for folder in (killed, whole)))
    assert losses(killed) == losses(whole)
    return errors
