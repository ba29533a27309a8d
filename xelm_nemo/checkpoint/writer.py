"""Megatron's checkpoint files, written by threads of the process that saves.

Megatron 0.15 forks a process for each file and asks a manager process for the results. A fork of a
process with threads may deadlock, a writer that dies leaves the save waiting for ever, and the manager
takes a second to start and outlives a rank that is killed. Threads do none of this, and writing to
disk does not hold Python's lock.
"""

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync


def write_buckets(
    transforms: list[Any], buckets: list[Any], *, threads: int, use_msc: bool = False
) -> list[Any]:
    """Write each bucket to its file.

    Args:
        transforms: what torch's writer does to streams; it does nothing.
        buckets: (path, the file's name in the index, (bytes, tensors)), as Megatron makes them: both are
            iterables of pairs of a write item and its data, gone through once, while the file is written.
        threads: how many files are written at a time.
        use_msc: whether paths are those of NVIDIA's multi-storage client.

    Returns:
        For each bucket its write results, or the exception that ended it.
    """

    def write(index: int) -> Any:
        written, counted = queue.SimpleQueue[Any](), queue.Queue[int]()
        counted.put(index)
        FileSystemWriterAsync.write_preloaded_data(
            transforms, index, buckets[index], written, counted, use_fsync=True, use_msc=use_msc
        )
        return written.get()[1]

    with ThreadPoolExecutor(max_workers=threads) as pool:
        return list(pool.map(write, range(len(buckets))))


def write_in_threads(
    transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: "queue.Queue[Any]"
) -> None:
    """Write each bucket of tensors to its file; what Megatron calls to save.

    Puts into `results` what Megatron expects there: for each bucket its write results, or the exception of
    the first bucket that failed.
    """
    outcomes = write_buckets(transforms, buckets, threads=len(buckets), use_msc=use_msc)
    results.put(first_error(outcomes) or dict(enumerate(outcomes)))


def first_error(outcomes: list[Any]) -> Exception | None:
    """What ended the first bucket that failed."""
    return next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)


def use_threads() -> None:
    """Have Megatron save so from now on, in this process, and each save have its writers' reports alone."""
    filesystem_async._get_write_results_queue = queue.Queue
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(write_in_threads)
