"""Many small tasks over processes of this machine, each done once, however often one begins again.

A task is done when its result is on disk. Whatever runs `work` on the tasks that `undone` names, here or
elsewhere, `results` then finds nothing left to do and hands out what there is.
"""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from xelm_nemo.errors import LaunchError
from xelm_nemo.files import read_json, write_json
from xelm_nemo.launch.local import die_with

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[T], Any]
_SAY_SECONDS = 30
_BYTES_A_PROCESS = 16 << 20  # of work that is worth the start of a process


def results(work: Work[T], tasks: Mapping[str, T], folder: Path, *, processes: int) -> Iterator[Any]:
    """The results of all tasks in their order; those that have none in `folder` are done first.

    Args:
        work: a function of a module, which processes can import; it returns JSON values, and its task's
            files are whole and on disk by then.
        tasks: name, which may be a path, to what `work` is given.
        folder: where results are kept.
        processes: how many work at once; with one, this process does.

    Raises:
        LaunchError: a process was killed.
        XelmError: what the first task in order that fails raises; others go on to their end.
    """
    left = undone(tasks, folder)
    calls = [(work, tasks[name], _result(folder, name)) for name in left]
    if min(processes, len(left)) <= 1:
        _follow(map(_do, calls), left)
    else:
        try:
            with ProcessPoolExecutor(
                min(processes, len(left)),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(os.getpid(),),
            ) as pool:
                _follow(pool.map(_do, calls), left)
        except BrokenProcessPool as error:
            raise LaunchError(
                "a worker process was killed, perhaps for want of memory; set launch.max_parallel lower, and "
                "run the same command again."
            ) from error
    return (read_json(_result(folder, name)) for name in tasks)


def undone(tasks: Mapping[str, T], folder: Path) -> list[str]:
    """The names of the tasks that have no result yet."""
    return [name for name in tasks if not _result(folder, name).is_file()]


def num_processes(num_bytes: int, most: int) -> int:
    """How many processes, up to `most`, work of this size is worth."""
    return max(1, min(most, num_bytes // _BYTES_A_PROCESS))


def _result(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _do(call: tuple[Work[T], T, Path]) -> None:
    work, task, result = call
    write_json(result, work(task))


def _begin(parent: int) -> None:
    """Set up a worker process: one thread for each library, since the processes are the threads."""
    die_with(parent)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    logging.disable(logging.WARNING)


def _follow(done: Iterator[None], names: list[str]) -> None:
    """Wait for all, with a line in the log now and then."""
    said = time.monotonic()
    for number, _ in enumerate(done, 1):
        if time.monotonic() - said > _SAY_SECONDS and number < len(names):
            log.info("%d of %d files done, now %s", number, len(names), names[number])
            said = time.monotonic()
