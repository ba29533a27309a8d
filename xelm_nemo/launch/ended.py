"""The end of a batch job: what becomes of it. Its last line calls this when every rank has gone."""

import sys
import time
from pathlib import Path

from xelm_nemo.command import FENCED
from xelm_nemo.launch import slurm
from xelm_nemo.launch.job import failed_for_good, record_end
from xelm_nemo.launch.state import CRASHES, GO_ON, State, read_state, slurm_job, write_state

_PATIENCE_SECONDS = 600  # for a controller that is being restarted
_POLL_SECONDS = 5


def see_off(folder: Path, code: int, max_crashes: int) -> None:
    """Record how a job ended, and put it back into the queue if it is to go on."""
    before = read_state(folder)
    if code == FENCED or (before and not before.is_mine and not (before.end or before.is_silent)):
        return  # another process works in the folder, and what it says counts
    if code == 0:
        return
    state = record_end(folder, code, lambda found: found.is_mine)
    job = slurm_job()
    if job is None or state.end is None:
        return
    state.end.again = wants_again(state, max_crashes)
    write_state(folder, state)  # before the requeue: the next attempt may begin at once
    if state.end.again and not _requeue(job):
        state.end.again = False
        write_state(folder, state)


def wants_again(state: State, max_crashes: int) -> bool:
    """Whether to run a job again that ended so: always when it stopped, a few times when it crashed."""
    if state.end is None or failed_for_good(state.end.code):
        return False
    return state.end.reason in GO_ON or (state.end.reason in CRASHES and state.crashes <= max_crashes)


def _requeue(job: str) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not slurm.requeue(job):
        if time.monotonic() > deadline:
            sys.stderr.write(f"SLURM did not take job {job} back; `python -m xelm_nemo.retry` starts it.\n")
            return False
        time.sleep(_POLL_SECONDS)
    return True
