"""Wait for batch jobs by their state files; what SLURM says is for jobs that cannot say it themselves.

Without accounting, and with the controller down, a job that ended says so in its file. One whose node was
lost says nothing: it has failed once SLURM, when it answers, neither runs it nor means to.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xelm_nemo.errors import LaunchError
from xelm_nemo.launch import slurm
from xelm_nemo.launch.slurm import Queued
from xelm_nemo.launch.state import FINISHED, State, read_state

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_QUEUE_SECONDS = 5.0  # between two questions to the controller
SETTLE_SECONDS = 30.0  # so long SLURM may say that a job is gone before that is believed
MAX_RELEASES = 3  # of a job that SLURM holds, with no life of it in between: its node cannot start it


@dataclass
class Followed:
    """A job that is waited for.

    Attributes:
        name: for people.
        job: SLURM's name for it; None: it was not started by SLURM.
        folder: with its state.
        is_done: whether what it makes is there, where that can be known better than from its state.
        gone_since: when SLURM first said that it neither runs nor waits; None when it last said otherwise.
        holds: how often, since it last lived, SLURM has put it back and held it; the last is one too many.
    """

    name: str
    job: str | None
    folder: Path
    is_done: Callable[[], bool] = lambda: False
    gone_since: float | None = None
    holds: int = 0


def follow(jobs: Sequence[Followed], on_tick: Callable[[], None] = lambda: None) -> None:
    """Wait until every job has finished or failed for good.

    Args:
        jobs: what to wait for.
        on_tick: called about once a second.

    Raises:
        LaunchError: names the jobs that failed, with their reasons.
    """
    left, failed, asked = list(jobs), list[str](), 0.0
    queued = slurm.queue()
    while left:
        if time.monotonic() - asked > _QUEUE_SECONDS:
            asked, queued = time.monotonic(), slurm.queue()
            _release(left, queued or {})
        for job in list(left):
            said = fate(job, read_state(job.folder), queued)
            if said is not None:
                left.remove(job)
                failed += [f"{job.name}: {said.removesuffix('.')}"] if said else []
                logger.info("%s: %s", job.name, said or "finished")
        on_tick()
        time.sleep(_POLL_SECONDS if left else 0)
    if failed:
        raise LaunchError(
            f"{'; '.join(failed)}. The others have ended; `python -m xelm_nemo.retry` starts these again."
        )


def _release(jobs: Sequence[Followed], queued: dict[str, Queued]) -> None:
    for job in jobs:
        here = queued.get(job.job or "")
        if not here or not here.is_held:
            continue
        if job.holds >= MAX_RELEASES:
            job.holds = MAX_RELEASES + 1
        elif slurm.release(str(job.job)):
            job.holds += 1
            logger.info("%s: SLURM held job %s (%s); released", job.name, job.job, here.reason)


def fate(job: Followed, state: State | None, queued: dict[str, Queued] | None) -> str | None:
    """None while a job may yet finish, "" once it has, and else why it never will."""
    own = state if state and state.job == job.job else None
    if job.is_done() or (own and own.end and own.end.reason == FINISHED):
        return ""
    if own and own.end and own.end.again is False:
        return own.end.message or own.end.reason
    if own and own.end is None and not own.is_silent:
        job.gone_since, job.holds = None, 0
        return None
    return _fate_by_queue(job, queued)


def _fate_by_queue(job: Followed, queued: dict[str, Queued] | None) -> str | None:
    if queued is None:
        return None
    here = queued.get(job.job or "")
    if here and here.is_held and job.holds > MAX_RELEASES:
        return f"SLURM holds job {job.job} again ({here.reason}); see to its node"
    if here and here.is_active:
        job.gone_since = None
        return None
    now = time.monotonic()
    job.gone_since = job.gone_since or now
    if now - job.gone_since < SETTLE_SECONDS:  # its last words may still be on their way, or a requeue
        return None
    return f"SLURM job {job.job} is {here.state if here else 'no longer known to SLURM'}"
