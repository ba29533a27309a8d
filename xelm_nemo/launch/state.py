"""`state.json`: how a job fares, in its own folder, so that anyone can know without asking a scheduler.

The process that works in a folder writes it about every two seconds for as long as it lives, and once more
when it ends. Whoever looks after the process (the local launcher, the end of a batch script) adds how it
ended where it could not say so itself. A file that stays as it is without an end is of a process that was
killed with everything around it, such as its node.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xelm_nemo.command import AGAIN, USER_ERROR
from xelm_nemo.errors import ArtifactError, Stopped, XelmError
from xelm_nemo.files import read_json

STATE = "state.json"
BEAT_SECONDS = 2.0
SILENT_SECONDS = 4.0  # without a beat for so long, a process is likely gone
FINISHED, FAILED, KILLED, LOST = "finished", "failed", "killed", "lost"
PREEMPTED, TIMED_OUT, STOPPED, CANCELLED = "preempted", "timed out", "stopped", "cancelled"
GO_ON = (PREEMPTED, TIMED_OUT, STOPPED)  # everything is saved; the job wants to run again
CRASHES = (FAILED, KILLED, LOST)


@dataclass
class End:
    """How an attempt ended. `again` is None until the end of the batch script has decided."""

    reason: str
    code: int
    message: str = ""
    time: float = field(default_factory=time.time)
    again: bool | None = None  # whether the job has been put back into the queue


@dataclass
class State:
    """One attempt to run a job, and how the earlier ones ended. Times are seconds since 1970.

    Attributes:
        job: SLURM's name of the job, such as "41_3"; None outside SLURM.
        restart: how often SLURM had put the job back when this attempt began.
        node: where rank 0 runs.
        beat: when the process last said that it lives.
        step: the last finished step, and `step_time` when that was.
        end: None while the process lives, or when nobody could say how it ended.
        ended: how many earlier attempts ended for each reason.
        crashed: how many earlier attempts of this SLURM job ended badly.
    """

    attempt: int = 0
    job: str | None = None
    restart: int = 0
    node: str = ""
    pid: int = 0
    started: float = 0.0
    beat: float = 0.0
    step: int = 0
    step_time: float = 0.0
    end: End | None = None
    ended: dict[str, int] = field(default_factory=dict)
    crashed: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the process should have said something by now."""
        return self.end is None and time.time() - self.beat > SILENT_SECONDS

    @property
    def crashes(self) -> int:
        """Attempts of this SLURM job that ended badly, this one included."""
        return self.crashed + int(self.end is not None and self.end.reason in CRASHES)

    @property
    def is_mine(self) -> bool:
        """Whether it is of the batch job that asks."""
        return (self.job, self.restart, self.node) == (slurm_job(), slurm_restart(), this_node())


def slurm_job() -> str | None:
    """SLURM's name for the job around this process: "41", of an array "41_3", or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def slurm_restart() -> int:
    """How often SLURM has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def this_node() -> str:
    """SLURM's name of the node, or the host's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def read_state(folder: Path) -> State | None:
    """The newest attempt in a folder; None when there was none."""
    try:
        values: dict[str, Any] = read_json(folder / STATE)
    except ArtifactError:
        return None
    end = values.pop("end", None)
    return State(**values, end=End(**end) if end else None)


def write_state(folder: Path, state: State) -> None:
    """Put a state into its place, whole but without waiting for the disk: a newer one follows soon."""
    part = folder / f".{STATE}.part"
    part.write_text(json.dumps(asdict(state), indent=1) + "\n")
    part.replace(folder / STATE)


def next_attempt(folder: Path) -> State:
    """A new attempt by this process, which counts how the one before ended."""
    before = read_state(folder) or State()
    ended = dict(before.ended)
    if before.attempt:
        before.end = before.end or End(LOST, 0)
        ended[before.end.reason] = ended.get(before.end.reason, 0) + 1
    now = time.time()
    return State(
        *(before.attempt + 1, slurm_job(), slurm_restart(), this_node(), os.getpid()),
        *(now, now, before.step, now),
        ended=ended,
        crashed=before.crashes if before.job == slurm_job() else 0,
    )


class Attempt:
    """A running attempt: keeps its state file up to date."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writing = folder, threading.Lock()
        self.state = next_attempt(folder)

    def at_step(self, step: int) -> None:
        """Say how far it is; reaches the disk with the next beat."""
        self.state.step, self.state.step_time = step, time.time()

    def write(self) -> None:
        """Say that this process lives."""
        with self._writing:
            if self.state.end is None:
                self.state.beat = time.time()
            write_state(self._folder, self.state)


@contextlib.contextmanager
def attempt(folder: Path, why_stopped: Callable[[], str] = lambda: STOPPED) -> Iterator[Attempt]:
    """Record an attempt for the length of the block, and how the block ended.

    Args:
        folder: of the job; this process is its only writer.
        why_stopped: one of GO_ON; asked when the block ends with `Stopped`.
    """
    running, over = Attempt(folder), threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            running.write()

    running.write()
    heart = threading.Thread(target=beat, name="heart", daemon=True)
    heart.start()
    end = End(FINISHED, 0)
    try:
        yield running
    except BaseException as error:
        end = _end(error, why_stopped)
        raise
    finally:
        over.set()
        heart.join()
        end.time = time.time()
        running.state.end = end
        running.write()


def _end(error: BaseException, why_stopped: Callable[[], str]) -> End:
    if isinstance(error, Stopped):
        return End(why_stopped(), AGAIN, str(error))
    if isinstance(error, XelmError):
        return End(FAILED, USER_ERROR, str(error))
    return End(FAILED, 1, f"{type(error).__name__}: {error}")
