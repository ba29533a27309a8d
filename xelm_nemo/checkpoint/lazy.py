"""Tensors that are read when they are asked for: what every conversion reads from and writes to."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo import device
from xelm_nemo.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Each thread holds a tensor or two, so their number bounds a conversion's memory.
MAX_THREADS = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is known by its shape and dtype, and read anew at every call of `read`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]  # what it returns may be mapped from a file, and is not to be changed
    place: str  # the file or folder that errors name


@dataclass(frozen=True)
class Batch:
    """Tensors of one dtype that are made together, for they come out of one read."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    make: Callable[[], Mapping[str, Tensor]]


def tensors_of(batch: Batch, place: str) -> dict[str, LazyTensor]:
    """A batch's tensors one by one: the first that is read has all made, and each is kept until its turn.

    Args:
        batch: the tensors.
        place: the file or folder that errors name.
    """
    made: dict[str, Tensor] = {}
    lock = threading.Lock()

    def read(name: str) -> Tensor:
        with lock:
            if name not in made:
                made.update(batch.make())
            return made.pop(name)

    return {
        name: LazyTensor(tuple(shape), batch.dtype, partial(read, name), place)
        for name, shape in batch.shapes.items()
    }


def finite(name: str, tensor: LazyTensor) -> LazyTensor:
    """The same tensor, refused as it is read when it holds a weight that is no number.

    Raises, once read:
        CheckpointError: names the file and the tensor.
    """

    def read() -> Tensor:
        found = tensor.read()
        if not is_finite(found):
            raise CheckpointError(
                f"{tensor.place}: {name} holds a number that is not finite; use a checkpoint without."
            )
        return found

    return dataclasses.replace(tensor, read=read)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN; one pass, and no mask as large as the tensor."""
    return not tensor.numel() or all(bool(edge.isfinite()) for edge in tensor.aminmax())


def owning(tensor: Tensor) -> Tensor:
    """The same tensor, contiguous, as one whose storage holds nothing else.

    torch saves a tensor's whole storage, which for a view of a mapped file is the whole file.
    """
    tensor = tensor.contiguous()
    if tensor.untyped_storage().nbytes() == tensor.nbytes or not tensor.numel():
        return tensor
    return torch.frombuffer(as_bytes(tensor), dtype=tensor.dtype).view(tensor.shape)


def as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy()


def cast(batch: Batch, dtype: torch.dtype | None) -> Batch:
    """The same tensors in another number format; None keeps theirs.

    Raises, once made:
        CheckpointError: names a tensor with numbers that are too large for the format.
    """
    if dtype in (None, batch.dtype):
        return batch

    def make() -> dict[str, Tensor]:
        tensors = {name: tensor.to(dtype) for name, tensor in batch.make().items()}
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise CheckpointError(
                    f"{name} holds numbers that {str(dtype)[6:]} cannot; export with dtype=bf16."
                )
        return tensors

    return dataclasses.replace(batch, dtype=dtype, make=make)


def in_threads(function: Callable[[Any], Any], work: Sequence[Any]) -> list[Any]:
    """The function's result for every item, in their order; the first error ends it."""
    with ThreadPoolExecutor(min(device.cores(), MAX_THREADS)) as pool:
        try:
            return list(pool.map(function, work))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
