"""One writer a folder, also where a file system's locks mean nothing to other nodes.

Two guards, one behind the other. The first is flock: it dies with its holder, and refuses a second one
wherever the file system keeps it (local disks, NFS, Lustre mounted with `flock`). The second is for where it
does not (Lustre with `localflock`, an NFS client cut off): each holder writes a token of its own into the
lock file, and whoever finds another token there stops. A new holder waits until an earlier one on another
node, if it still lived, must have looked.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from xelm_nemo.command import FENCED
from xelm_nemo.errors import RunFolderError

LOCK = ".lock"
LOOK_SECONDS = 2.0  # how often a holder looks whether the folder is still its own
LEASE_SECONDS = 10.0  # how long a new holder waits for one on another node that did not let go
_POLL_SECONDS = 0.1
_MAX_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Claim:
    """A held folder."""

    folder: Path
    token: str

    def is_good(self) -> bool:
        """Whether nobody else has taken the folder."""
        return _read(self.folder / LOCK).get("token") in (None, self.token)

    def insist(self) -> None:
        """End this process if another has taken the folder; call it before anything takes its final name.

        It ends at once, in the middle of whatever it does, and cleans up nothing: the folder is another's.
        """
        if not self.is_good():
            os.write(sys.stderr.fileno(), f"error: {_held(self.folder)}\n".encode())
            os._exit(FENCED)


@contextlib.contextmanager
def hold(folder: Path, *, patience_seconds: float = 3.0) -> Iterator[Claim]:
    """Hold the folder for the length of the block; the system lets go however this process ends.

    When another node takes the folder meanwhile, this process ends within LOOK_SECONDS.

    Args:
        folder: is made when it does not exist, and then goes again if nothing comes into it.
        patience_seconds: how long to wait for another holder: one that was just killed takes a moment.

    Raises:
        RunFolderError: another process holds the folder (names its host, process and start), or the
            folder cannot be made or written to.
    """
    missing = [place for place in (folder, *folder.parents) if not os.access(place, os.F_OK)]
    with _acquire(folder, patience_seconds) as file:
        earlier = _read(folder / LOCK)
        claim = Claim(folder, uuid.uuid4().hex)
        _write(file, _holder() | {"token": claim.token})
        try:
            with _watched(claim):
                if earlier.get("token") and earlier.get("host") != socket.gethostname():
                    time.sleep(LEASE_SECONDS)
                yield claim
        finally:
            if claim.is_good():
                _write(file, {})
                _remove_unused(missing)


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


def _open(folder: Path) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be made or written to ({error.strerror}: {error.filename}); "
            "set output=DIR to a folder that can."
        ) from error


def _acquire(folder: Path, patience_seconds: float) -> BinaryIO:
    """The lock file, held."""
    deadline = time.monotonic() + patience_seconds
    while True:
        file = _open(folder)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(file, folder / LOCK):
                return file
        file.close()
        if time.monotonic() > deadline:
            raise RunFolderError(_held(folder))
        time.sleep(_POLL_SECONDS)


def _is_there(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of this name: its last holder may have removed the folder."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _remove_unused(made: Sequence[Path]) -> None:
    """Remove folders, the innermost first, as long as they hold nothing but the lock."""
    with contextlib.suppress(OSError):  # something is in one, or it is gone
        if made and [path.name for path in made[0].iterdir()] == [LOCK]:
            (made[0] / LOCK).unlink()
        for folder in made:
            folder.rmdir()


@contextlib.contextmanager
def _watched(claim: Claim) -> Iterator[None]:
    """End this process at once if the folder becomes another's, whatever it is doing."""

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            claim.insist()

    over = threading.Event()
    watch = threading.Thread(target=look, name="lock", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _write(file: BinaryIO, holder: dict[str, Any]) -> None:
    # In place, in one piece: on NFS a reader that opens the same file sees what was written last, while
    # a file put in its place may stay unseen as long as the folder's entries are cached.
    data = json.dumps(holder).encode()[:_MAX_BYTES]
    os.pwrite(file.fileno(), data, 0)
    os.ftruncate(file.fileno(), len(data))
    os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    """What the lock file says; nothing where it is torn or cannot be read, which accuses nobody."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _holder() -> dict[str, Any]:
    started, job = time.strftime("%Y-%m-%d %H:%M:%S"), os.environ.get("SLURM_JOB_ID")
    command = " ".join(sys.argv)[: _MAX_BYTES // 4]
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "since": started,
        "command": command,
    }


def _held(folder: Path) -> str:
    holder = _read(folder / LOCK)
    if "pid" in holder:
        job = f" in SLURM job {holder['job']}" if holder.get("job") else ""
        who = f"process {holder['pid']} on {holder['host']}{job} since {holder['since']}"
        stop = f"stop it with `kill {holder['pid']}`"
    else:  # taken this moment, its name not yet written
        who, stop = "another process", "stop it"
    return f"{folder} is held by {who}; wait for it, {stop}, or set output=DIR to another folder."
