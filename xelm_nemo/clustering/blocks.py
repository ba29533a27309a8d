"""Rows taken in blocks, so that memory is bounded and bits do not depend on the number of CPU threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_ROWS = {"cpu": 1 << 14, "cuda": 1 << 18}
_Result = TypeVar("_Result")


def map_blocks(function: Callable[[slice], _Result], num_rows: int, device: torch.device) -> list[_Result]:
    """The function's results for each block of rows, in order.

    On a CPU torch's threads take one block each: a library that multiplies matrices may add in another
    order with another number of threads, but not within one.
    """
    blocks = blocks_of(num_rows, device)
    if device.type != "cpu":
        return [function(block) for block in blocks]
    with one_thread() as threads:
        if min(threads, len(blocks)) <= 1:
            return [function(block) for block in blocks]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, blocks))


def blocks_of(num_rows: int, device: torch.device) -> list[slice]:
    """All rows, in blocks of the device's size."""
    size = _ROWS[device.type]
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


@contextmanager
def one_thread() -> Iterator[int]:
    """Let torch's CPU operations use one thread each; yields how many they had, and gives them back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
