"""State files: what a job says of itself, and what is said of it when it cannot."""

import json
import time

import pytest

from xelm_nemo.errors import ConfigError, Stopped
from xelm_nemo.launch import state as state_module
from xelm_nemo.launch.job import LOG, record_end
from xelm_nemo.launch.state import (
    FAILED,
    FINISHED,
    PREEMPTED,
    STATE,
    Attempt,
    State,
    attempt,
    next_attempt,
    read_state,
    write_state,
)


def test_running_attempt_says_where_it_is_and_how_far(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "BEAT_SECONDS", 0.01)
    for name, value in {"ARRAY_JOB_ID": 41, "ARRAY_TASK_ID": 3, "JOB_ID": 44, "RESTART_COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu7")
    with attempt(tmp_path) as own:
        own.at_step(5)
        deadline = time.monotonic() + 10
        while read_state(tmp_path).step < 5:
            assert time.monotonic() < deadline
        seen = read_state(tmp_path)
    assert (seen.job, seen.restart, seen.node, seen.attempt) == ("41_3", 2, "gpu7", 1)
    assert seen.end is None and not seen.is_silent and seen.is_mine
    assert read_state(tmp_path).end.reason == FINISHED


@pytest.mark.parametrize(
    "error, reason, code",
    [(Stopped("saved"), PREEMPTED, 75), (ConfigError("mend x"), FAILED, 2), (KeyError("bug"), FAILED, 1)],
)
def test_end_says_why(tmp_path, error, reason, code):
    with pytest.raises(type(error)), attempt(tmp_path, lambda: PREEMPTED):
        raise error
    end = read_state(tmp_path).end
    assert (end.reason, end.code) == (reason, code)
    assert str(error) in end.message


def test_next_attempt_counts_how_the_earlier_ones_ended(tmp_path):
    for error in (Stopped("a"), Stopped("b"), ConfigError("c")):
        with pytest.raises(type(error)), attempt(tmp_path, lambda: PREEMPTED):
            raise error
    write_state(tmp_path, next_attempt(tmp_path))  # and one that says nothing more: its node is gone
    found = next_attempt(tmp_path)
    assert found.attempt == 5
    assert found.ended == {PREEMPTED: 2, FAILED: 1, "lost": 1}


def test_crashes_are_counted_anew_for_a_new_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    for crashes in (1, 2):
        with pytest.raises(ConfigError), attempt(tmp_path):
            raise ConfigError("again")
        assert read_state(tmp_path).crashes == crashes
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    assert next_attempt(tmp_path).crashes == 0


def test_process_that_says_nothing_is_silent(tmp_path):
    own = Attempt(tmp_path)
    own.write()
    found = read_state(tmp_path)
    found.beat -= state_module.SILENT_SECONDS + 1
    assert found.is_silent


def test_torn_state_is_none(tmp_path):
    (tmp_path / STATE).write_text('{"attempt": 1, "jo')
    assert read_state(tmp_path) is None


@pytest.mark.parametrize("code", [137, -9])
def test_end_of_a_killed_process_is_recorded_with_the_end_of_its_log(tmp_path, code):
    write_state(tmp_path, next_attempt(tmp_path))
    (tmp_path / LOG).write_text("error: of an earlier attempt\n\n--- 2026-01-01 job 7\nstep 3\nstep 4\n")
    found = record_end(tmp_path, code, lambda state: True)
    assert (found.end.reason, found.end.code) == ("killed", 137)
    assert found.end.message == "was killed by SIGKILL, perhaps for want of memory: step 3 | step 4"
    assert read_state(tmp_path) == found


def test_process_that_failed_before_it_said_anything_is_an_attempt_of_its_own(tmp_path):
    with attempt(tmp_path):
        pass
    (tmp_path / LOG).write_text("\n--- now job 8\nerror: corpus.path is not set\n")
    found = record_end(tmp_path, 2, lambda state: state.pid == -1)
    assert (found.attempt, found.end.message) == (2, "corpus.path is not set")
    assert found.ended == {FINISHED: 1}


def test_what_a_process_said_of_its_end_is_not_overwritten(tmp_path):
    with pytest.raises(Stopped), attempt(tmp_path, lambda: PREEMPTED):
        raise Stopped("saved")
    assert record_end(tmp_path, 137, lambda state: True).end.reason == PREEMPTED


def test_state_is_plain_json(tmp_path):
    write_state(tmp_path, State(attempt=1, job="4"))
    assert json.loads((tmp_path / STATE).read_text())["job"] == "4"
