"""Whose a run folder is: one process's at a time, and one configuration's from the first artifact on."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from xelm_nemo import lock
from xelm_nemo.config.compose import from_yaml, to_yaml
from xelm_nemo.config.schema import RunConfig, differing_keys
from xelm_nemo.errors import RunFolderError
from xelm_nemo.files import write_atomic, write_json
from xelm_nemo.stages.base import BASE, check_recorded_base, record_base
from xelm_nemo.stages.record import RECORD, environment
from xelm_nemo.stages.run import CONFIG, Run

_SHOWN_DIFFERENCES = 4


@contextlib.contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run folder under the run's configuration; one in which nothing gets made is left as it was.

    Raises:
        RunFolderError: another process holds the folder, or as `claim`.
    """
    with lock.hold(run.folder):
        claim(run)
        try:
            yield
        except BaseException:
            if not _is_used(run.folder):
                _give_back(run.folder)
            raise


def claim(run: Run) -> None:
    """Write the configuration into a new run folder, or see that it is the one that is there.

    Raises:
        ArtifactError: the run adds to a set that is not whole.
        RunFolderError: another configuration made what is in the folder (names the keys that differ), or
            added to another set; or the folder holds files that no run wrote.
    """
    path, is_used = run.folder / CONFIG, _is_used(run.folder)
    if path.is_file():
        theirs = from_yaml(path)
        keys = differing_keys(run.config, theirs)
        if keys and is_used:
            raise RunFolderError(_conflict(run, keys, theirs))
        if is_used:
            check_recorded_base(run, theirs)
    elif any(not file.name.startswith(".") for file in run.folder.iterdir()):
        raise RunFolderError(
            f"{run.folder} holds files but no {CONFIG}, so it is no run folder; "
            "set output=DIR to a new folder."
        )
    if not is_used or not (run.folder / BASE).is_file():
        record_base(run)
    write_atomic(path, to_yaml(run.config))
    write_json(run.folder / RECORD, environment(), only_if_changed=True)


def _is_used(folder: Path) -> bool:
    """Whether a run folder holds any file but those that claim it."""
    claims = {folder / name for name in (CONFIG, RECORD, BASE, lock.LOCK)}
    return any(path not in claims and not path.is_dir() for path in folder.rglob("*"))


def _give_back(folder: Path) -> None:
    """Empty an unused run folder; the lock is its holder's to remove."""
    for name in (CONFIG, RECORD, BASE):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            path.rmdir()


def _conflict(run: Run, keys: list[str], theirs: RunConfig) -> str:
    said = [f"{key} is {_at(theirs, key)!r} there and {_at(run.config, key)!r} here" for key in keys]
    more = len(said) - _SHOWN_DIFFERENCES
    differences = "; ".join(said[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
    return f"{run.folder} belongs to another configuration: {differences}. Set output=DIR to a new folder."


def _at(config: RunConfig, key: str) -> object:
    """The value of a key such as "optim.lr"."""
    return functools.reduce(getattr, key.split("."), config)
