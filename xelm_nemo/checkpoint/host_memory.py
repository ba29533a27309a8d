"""Copies of a device's tensors in the host's memory, made while the device computes on."""

import contextlib
import logging
import mmap
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from xelm_nemo import device

log = logging.getLogger(__name__)

_ALIGNMENT = 512  # bytes; whole sectors and cache lines
_PIECE = 1 << 28  # bytes that are made ready at a time


class HostMemory:
    """Memory that is made ready once and holds one set of copies after another.

    Page-locked where there is CUDA: the way from a GPU is then at the bus's full speed, and the CPU takes no
    part in it. To lock pages takes longer than to copy to them, so `reserve` does it beside the first steps.
    """

    def __init__(self) -> None:
        """Takes no memory yet."""
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._locked: list[Tensor] = []
        # CUDA would take what comes to lie at the same addresses for memory that is locked, and copy from it
        # what lay there before.
        weakref.finalize(self, _unlock, self._locked).atexit = False
        self._getting_ready: threading.Thread | None = None
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def reserve(self, num_bytes: int) -> None:
        """Begin to make room for copies of so many bytes in all, if there is not enough, and return."""
        self._wait()
        if num_bytes > len(self._memory):
            self._memory = mmap.mmap(-1, num_bytes)
            if device.has_cuda():
                self._getting_ready = threading.Thread(target=self._make_ready, args=[device.thread_start()])
                self._getting_ready.start()

    def copy(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Begin to copy tensors, as they are when what the device has been told so far is done.

        Returns:
            The copies, valid until the next call, and a CUDA event that happens when they are made; until
            then the tensors must not change, nor their memory be used for others.
        """
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.reserve(end)
        self._wait()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = [
                self._at(start, tensor).copy_(tensor, non_blocking=True)
                for start, tensor in zip(starts, tensors, strict=True)
            ]
            return copies, self._stream.record_event()

    def _at(self, start: int, like: Tensor) -> Tensor:
        """An uninitialised tensor at a place, with a storage of its own: torch saves whole storages."""
        if like.numel() == 0:
            return torch.empty(like.shape, dtype=like.dtype)
        flat = torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel(), offset=start)
        return flat.view(like.shape)

    def _wait(self) -> None:
        if self._getting_ready is not None:
            self._getting_ready.join()
            self._getting_ready = None

    def _make_ready(self, start: Callable[[], None]) -> None:
        """Have the system give the pages, several at a time, and lock them for the GPU."""
        start()
        _unlock(self._locked)
        with contextlib.suppress(AttributeError, OSError):  # where there are no huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            list(pool.map(torch.Tensor.zero_, torch.split(whole, _PIECE)))
        if device.page_lock(whole):  # in one piece: CUDA refuses a copy that goes from one into the next
            self._locked.append(whole)
        else:
            log.warning(
                "%.1f GB of memory cannot be page-locked (ulimit -l): saves take longer", whole.nbytes / 1e9
            )


def _unlock(locked: list[Tensor]) -> None:
    while locked:
        device.page_unlock(locked.pop())
