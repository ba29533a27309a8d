"""Signals that ask a process to save what it has and end, such as SLURM's before a time limit."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

DEFAULT = ("USR2",)  # USR1 is NCCL's own


class StopRequest:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Remember a signal; a second one changes nothing."""
        self.signal = self.signal or signal.Signals(number).name


@contextlib.contextmanager
def caught(names: Sequence[str]) -> Iterator[StopRequest]:
    """Take these signals as requests to stop, those that came while they were blocked included."""
    request, numbers = StopRequest(), _numbers(names)
    earlier = {number: signal.signal(number, request.take) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield request
    finally:
        for number, handler in earlier.items():  # a process that stops is not hurried by one signal more
            signal.signal(number, signal.SIG_IGN if request else handler)


def block(names: Sequence[str]) -> None:
    """Have these signals wait; a process that is started now keeps them waiting until `caught`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _numbers(names))


@contextlib.contextmanager
def blocked(names: Sequence[str]) -> Iterator[None]:
    """Have these signals wait for the length of the block, here and in processes started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers(names))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _numbers(names: Sequence[str]) -> list[signal.Signals]:
    return [signal.Signals[f"SIG{name}"] for name in names]
