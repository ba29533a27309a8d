"""Signals to a real worker, and ranks that agree on the step to stop at."""

import re
import signal

import pytest
import torch
import torch.distributed as dist

from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, free_ports, losses, on_ranks
from tests.helpers.workers import start_worker
from tests.parallel.test_layouts import DROPOUT
from xelm_nemo.command import AGAIN
from xelm_nemo.launch.state import read_state
from xelm_nemo.parallel import Agreement

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)


@pytest.mark.slow
def test_signal_stops_a_run_after_its_step_and_it_goes_on_to_the_same_bits(tmp_path):
    workshop = Workshop(tmp_path)
    workshop.set_up(DROPOUT)
    settings = {"train_iters": 60, "save_interval": 60}
    stopped, whole = (workshop.job(name, DROPOUT, **settings) for name in ("stopped", "whole"))
    undisturbed, worker = start_worker(whole), start_worker(stopped)
    while not losses(stopped):
        assert worker.poll() is None, worker.communicate()[1]
    for _ in range(3):  # the second and third come while it saves, or when it has
        worker.send_signal(signal.SIGUSR2)
    _, said = worker.communicate()
    assert worker.returncode == AGAIN, said
    step = int(re.search(r"stopped at iteration (\d+), which is saved", said)[1])
    state = read_state(stopped)
    assert 0 < step < 60 and state.step == step and state.end.reason == "stopped"
    again = start_worker(stopped)
    for process in (undisturbed, again):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert f"from iteration {step} to 60" in errors
    assert read_state(stopped).ended == {"stopped": 1}
    found, expected = (checkpoint_tensors(folder / "model/weights") for folder in (stopped, whole))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(stopped) == losses(whole)


@pytest.mark.slow
def test_second_of_two_jobs_that_slurm_started_for_one_waits_and_trains_nothing(tmp_path, monkeypatch):
    workshop = Workshop(tmp_path)
    workshop.set_up(DROPOUT)
    folder = workshop.job("expert0", DROPOUT, train_iters=20)
    monkeypatch.setenv("XELM_BATCH", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    workers = [start_worker(folder) for _ in range(2)]
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert sorted("finished" in one for one in said) == [False, True]
    assert read_state(folder).attempt == 1


def agree(folder):
    """A rank asks to stop at one step; what each rank is told."""
    dist.init_process_group("gloo")
    agreement, rank = Agreement(), dist.get_rank()
    told = [agreement.any(rank == 1 and step == 2) for step in range(4)]
    (folder / f"told{rank}").write_text(str(told))
    dist.destroy_process_group()


def test_ranks_agree_on_the_step_to_stop_at(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_ports(1)[0]))
    on_ranks(2, agree, tmp_path)
    assert [(tmp_path / f"told{rank}").read_text() for rank in (0, 1)] == [
        str([False, False, False, True])
    ] * 2
