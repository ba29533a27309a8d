"""What is launched: a Python module on some ranks, in a folder where its log and its state are."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xelm_nemo.command import USER_ERROR
from xelm_nemo.launch.state import FAILED, KILLED, End, State, next_attempt, read_state, write_state

LOG = "train.log"
START_OF_RUN = "--- "  # begins the line that parts one attempt's log from the next
# What Megatron asks of CUDA's queues, and no warnings of libraries about packages that are optional.
VARIABLES = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
_LAST_LINES = 3
_LAST_BYTES = 1 << 16


@dataclass(frozen=True)
class Job:
    """A Python module to run on some ranks; `python -m <module> <arguments>` on each.

    Attributes:
        name: for people.
        module: the worker.
        folder: where its log and its state are.
        num_ranks: processes that work together.
        arguments: of the module; empty: the folder.
        after: the name of the job that has to finish first, if it is run along with this one.
    """

    name: str
    module: str
    folder: Path
    num_ranks: int = 1
    arguments: tuple[str, ...] = ()
    after: str | None = None

    @property
    def words(self) -> list[str]:
        """What follows `python`."""
        return ["-m", self.module, *(self.arguments or [str(self.folder)])]


def record_end(folder: Path, code: int, is_own: Callable[[State], bool]) -> State:
    """Add how an attempt ended where the process could not say so itself.

    Args:
        folder: of the job, in which nobody works any more.
        code: its exit code, 128 + n or -n if signal n killed it.
        is_own: whether a state is of this attempt; one that failed at once may have written none.
    """
    state = read_state(folder)
    if state is None or not is_own(state):
        state = next_attempt(folder)
    if state.end is None:
        code = 128 - code if code < 0 else code
        how, said = last_words(folder, code)
        message = said if how == FAILED else f"{how}: {said}"
        state.end = End(KILLED if code > 128 else FAILED, code, message)
        write_state(folder, state)
    return state


def last_words(folder: Path, code: int, start: int | None = None) -> tuple[str, str]:
    """How a job failed, and what it said: its own error line, or else the end of its log.

    Args:
        folder: of the job.
        code: its exit code.
        start: where in the log this attempt begins; None: behind the last line that parts two attempts.
    """
    said = _tail(folder / LOG, start)
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return FAILED, errors[-1].removeprefix("error: ")
    return _ending(code), " | ".join(lines[-_LAST_LINES:])


def failed_for_good(code: int) -> bool:
    """Whether a job that ended so would end so again, for it was the user's to mend."""
    return code == USER_ERROR


def _tail(log: Path, start: int | None) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(start if start is not None else max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
        said = file.read().decode(errors="replace")
    _, parted, newest = said.rpartition("\n" + START_OF_RUN)
    return newest.partition("\n")[2] if parted and start is None else said


def _ending(code: int) -> str:
    code = 128 - code if code < 0 else code
    if code <= 128 or code - 128 not in {int(number) for number in signal.Signals}:
        return f"failed with exit code {code}"
    name = signal.Signals(code - 128).name
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
