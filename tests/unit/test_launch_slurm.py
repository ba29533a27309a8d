"""What SLURM says, without a SLURM: its variables, its queue, and why a signal came."""

import pytest

from xelm_nemo.launch import slurm
from xelm_nemo.launch.slurm import Queued, first_host, queue, rank_environment, why_stopped
from xelm_nemo.launch.state import PREEMPTED, STOPPED, TIMED_OUT


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("n0", "n0"),
        ("n0,n1", "n0"),
        ("n[0-3]", "n0"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a[7]-ib,b2", "a7-ib"),
        ("rack1-n[1,4]", "rack1-n1"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_ranks_find_each_other_by_what_srun_says():
    task = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "n[2-3]",
        "SLURM_JOB_ID": "40077",
    }
    assert rank_environment(task) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "n2",
        "MASTER_PORT": "20077",
    }


@pytest.mark.parametrize("devices, local", [("0,1,2,3", "3"), ("6", "0"), ("", "3")])
def test_task_that_sees_one_gpu_takes_it(devices, local):
    assert rank_environment({"SLURM_LOCALID": "3", "CUDA_VISIBLE_DEVICES": devices})["LOCAL_RANK"] == local


def test_queue_is_read_and_a_controller_that_is_down_is_no_queue(monkeypatch):
    said = "41_0|RUNNING|None|n0\n41_3|PENDING|BeginTime|\n42|NODE_FAIL|NodeDown|n1\n"
    monkeypatch.setattr(slurm, "ask", lambda *words, **kwargs: said)
    found = queue()
    assert found["41_3"] == Queued("PENDING", "BeginTime", "")
    assert [found[name].is_active for name in ("41_0", "41_3", "42")] == [True, True, False]
    monkeypatch.setattr(slurm, "ask", lambda *words, **kwargs: None)
    assert queue() is None


@pytest.mark.parametrize(
    "said, why",
    [
        ("RunTime=00:10:00 TimeLimit=1-00:00:00 PreemptTime=2026-11-22T03:00:00", PREEMPTED),
        ("RunTime=23:58:00 TimeLimit=1-00:00:00 PreemptTime=None", TIMED_OUT),
        ("RunTime=00:10:00 TimeLimit=1-00:00:00 PreemptTime=None", STOPPED),
        ("RunTime=9-00:10:00 TimeLimit=UNLIMITED PreemptTime=None", STOPPED),
        (None, STOPPED),
    ],
)
def test_time_limits_preemptions_and_wishes_are_told_apart(monkeypatch, said, why):
    monkeypatch.setenv(slurm.BATCH, "1")
    monkeypatch.setenv(slurm.GRACE, "90")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr(slurm, "ask", lambda *words, **kwargs: said)
    assert why_stopped("SIGUSR2") == why


def test_command_that_is_not_there_says_nothing():
    assert slurm.ask("no-such-command") is None
