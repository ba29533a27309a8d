"""A sparse matrix in files, for one that has no place in memory.

N documents, F terms.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.tfidf import Part


@dataclass(frozen=True, eq=False)
class RowsOnDisk:
    """A matrix [N, F] whose attributes are called as those of `scipy.sparse.csr_matrix`.

    Attributes:
        indptr: [N + 1] int64, in memory: where each row begins in the next two.
        indices: int32, a file: the columns of the entries.
        data: float64, a file: their values.
        shape: (N, F).
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float64]
    shape: tuple[int, int]


def store_rows(parts: Iterable[Part], num_columns: int, folder: Path) -> RowsOnDisk:
    """Write rows as they come into an empty folder, which has to stay as long as they are read.

    Args:
        parts: of the rows, each with values, columns and where its rows begin among them.
        num_columns: F.
        folder: takes 12 bytes an entry.

    Raises:
        OSError: there is no room in the folder.
    """
    ends, size = [np.zeros(1, np.int64)], 0
    with (folder / "data").open("wb") as data, (folder / "indices").open("wb") as indices:
        for values, columns, starts in parts:
            data.write(values.data.cast("B"))
            indices.write(columns.data.cast("B"))
            ends.append(size + starts[1:])
            size += len(columns)
    indptr = np.concatenate(ends)
    shape = len(indptr) - 1, num_columns
    return RowsOnDisk(
        indptr, _mapped(folder / "indices", np.int32), _mapped(folder / "data", np.float64), shape
    )


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
