"""Files whose tensors have known places, filled by threads in any order."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from xelm_nemo.checkpoint.lazy import Batch, as_bytes, in_threads
from xelm_nemo.errors import CheckpointError

# As much as `cp` writes at once. Larger calls have Linux cache the file in huge pages, which a virtual
# machine asks its host for one by one: three times the time (docs/benchmarks/conversion_2026-11-22.md).
_AT_ONCE = 256 * 1024


def fill(places: Mapping[str, tuple[Path, int]], batches: Sequence[Batch]) -> None:
    """Make every batch, the largest first, and write its tensors to their places.

    Args:
        places: name -> file, which exists, and the first byte of the tensor in it.
        batches: tensors with these names.

    Raises:
        CheckpointError: a tensor cannot be made, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        files = {path: _opened(path, stack) for path, _ in places.values()}

        def pour(batch: Batch) -> None:
            for name, tensor in batch.make().items():
                path, first = places[name]
                _write(files[path], tensor, first)

        in_threads(pour, sorted(batches, key=num_bytes, reverse=True))


def num_bytes(batch: Batch) -> int:
    """Of all tensors of a batch."""
    return sum(math.prod(shape) for shape in batch.shapes.values()) * batch.dtype.itemsize


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be written.

    Raises:
        CheckpointError: instead of an OSError, and of what torch makes of one.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (reason := _os_error(error)) is None:
            raise
        raise CheckpointError(
            f"{folder} cannot be written ({reason}); what was there before is whole. Make room and run again."
        ) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system that another error came of."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _opened(path: Path, stack: contextlib.ExitStack) -> int:
    file = os.open(path, os.O_WRONLY)
    stack.callback(os.close, file)
    return file


def _write(file: int, tensor: Tensor, first: int) -> None:
    left = as_bytes(tensor.contiguous())
    while left.size:
        written = os.pwrite(file, left[:_AT_ONCE].data, first)
        left, first = left[written:], first + written
