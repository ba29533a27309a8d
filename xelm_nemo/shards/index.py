"""Megatron's `.idx` file of a shard, written from arrays; its own builder keeps lists of every document."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.files import atomic_file

_HEADER, _VERSION = b"MMIDIDX\x00\x00", 1
_CODES = {"int32": 4, "uint16": 8}  # Megatron's numbers for the types of ids that are used here


def write_index(path: Path, lengths: NDArray[np.int32], dtype: np.dtype[Any]) -> None:
    """Write the index of a shard in which every document is one sequence.

    Args:
        path: the `.idx` file.
        lengths: tokens of each document, int32 [documents].
        dtype: of the ids in the `.bin` file.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    with atomic_file(path) as file:
        file.write(_HEADER + struct.pack("<QB", _VERSION, _CODES[dtype.name]))
        file.write(struct.pack("<QQ", len(lengths), len(lengths) + 1))
        file.write(lengths.tobytes())
        file.write((starts * dtype.itemsize).tobytes())
        file.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
