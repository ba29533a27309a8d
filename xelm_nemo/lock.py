"""One writer a folder: a lock that dies with its holder and says who holds it."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from xelm_nemo.errors import RunFolderError

LOCK = ".lock"
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def hold(folder: Path, *, patience_seconds: float = 3.0) -> Iterator[None]:
    """Hold the folder for the length of the block; the system lets go however this process ends.

    Args:
        folder: is made when it does not exist.
        patience_seconds: how long to wait for another holder: one that was just killed takes a moment.

    Raises:
        RunFolderError: another process holds the folder (names its host, process and start), or the
            folder cannot be made or written to.
    """
    with _open(folder) as file:
        _acquire(file.fileno(), folder, patience_seconds)
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open() as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _open(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be made or written to ({error.strerror}: {error.filename}); "
            "set output=DIR to a folder that can."
        ) from error


def _acquire(descriptor: int, folder: Path, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunFolderError(_held(folder)) from None
            time.sleep(_POLL_SECONDS)


def _holder() -> dict[str, object]:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": started, "command": " ".join(sys.argv)}


def _held(folder: Path) -> str:
    try:
        holder = json.loads((folder / LOCK).read_text())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        stop = f"stop it with `kill {holder['pid']}`"
    except (ValueError, KeyError):  # taken this moment, its name not yet written
        who, stop = "another process", "stop it"
    return f"{folder} is held by {who}; wait for it, {stop}, or set output=DIR to another folder."
