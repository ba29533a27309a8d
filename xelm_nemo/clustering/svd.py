"""The first singular vectors of a large sparse matrix, on a GPU where there is one.

Subspace iteration on A^T A (Halko, Martinsson and Tropp, 2011) from a seeded start, then the best directions
of the subspace (Rayleigh-Ritz). Sums have a fixed order, so that bits depend on the seed and the device, and
not on the number of CPU threads.

A CPU reads A block by block, from wherever it lies, and memory holds dense matrices of F rows alone. A GPU
has A and A^T whole, as its sums go along rows; a matrix that is too large for this is left to the CPU.

N documents, F terms, D dimensions, L = D + 10 columns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo._csrc import add_transposed_times, sparse_times
from xelm_nemo.clustering.blocks import blocks_of, map_blocks, one_thread

_MORE_COLUMNS, _ITERATIONS = 10, 7  # as many columns as scikit-learn, and one iteration more
_LONGEST_BAG = 1024  # entries that a GPU adds up one after the other
_MOST_ON_GPU = 1 << 30  # entries, of 24 bytes there and 12 in the host's memory
_SMALLEST = 1e-12  # of the largest eigenvalue: less is rounding

_Product = Callable[[Tensor], Tensor]


def right_singular_vectors(matrix: Any, dim: int, *, seed: int, device: torch.device) -> NDArray[np.float64]:
    """[D, F] unit rows, the strongest first, each with its largest entry positive; zero beyond the rank.

    Args:
        matrix: [N, F], a `RowsOnDisk` or a scipy.sparse CSR matrix.
        dim: D, at most N and F.
        seed: of the start.
        device: where to compute: in float64 on a CPU, in float32 on a GPU.
    """
    if len(matrix.data) > _MOST_ON_GPU:
        device = torch.device("cpu")
    width = min(dim + _MORE_COLUMNS, *matrix.shape)
    there_and_back, gram_of_product = _on_cpu(matrix) if device.type == "cpu" else _on_gpu(matrix, device)
    start = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), np.float32)
    subspace = _orthonormal(torch.from_numpy(start).to(device, _dtype(device)))
    for _ in range(_ITERATIONS):
        subspace = _orthonormal(there_and_back(subspace))
    strength, rotation = _eigen(gram_of_product(subspace))
    keep = (strength > _SMALLEST * strength[-1]).double()
    vectors = _times_small(subspace, rotation * keep).flip(1)[:, :dim].double().cpu().numpy().T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0))


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type == "cpu" else torch.float32


def _on_cpu(matrix: Any) -> tuple[_Product, _Product]:
    """S to A^T A S, and to the products of the columns of A S; neither holds A S."""
    cpu = torch.device("cpu")
    parts = np.asarray(matrix.indptr, np.int64), matrix.indices, matrix.data

    def there_and_back(dense: Tensor) -> Tensor:
        columns, total = dense.numpy(), np.zeros(dense.shape)
        threads = torch.get_num_threads()
        for block in blocks_of(matrix.shape[0], cpu):
            product = sparse_times(*parts, block, columns, num_threads=threads)
            add_transposed_times(*parts, block, product, total, num_threads=threads)
        return torch.from_numpy(total)

    def gram_of_product(dense: Tensor) -> Tensor:
        columns = dense.numpy()

        def gram(block: slice) -> Tensor:
            product = torch.from_numpy(sparse_times(*parts, block, columns, num_threads=1))
            return product.T @ product

        return _sum(map_blocks(gram, matrix.shape[0], cpu))

    return there_and_back, gram_of_product


def _on_gpu(matrix: Any, device: torch.device) -> tuple[_Product, _Product]:
    """The same in the GPU's memory."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape)
    times, transposed_times = bag_product(matrix, device), bag_product(matrix.T.tocsr(), device)
    return lambda dense: transposed_times(times(dense)), lambda dense: _gram(times(dense))


def bag_product(matrix: Any, device: torch.device) -> _Product:
    """The product as weighted sums of rows: unlike cuSPARSE's it adds in a fixed order.

    Long rows are cut into bags, and the bags of a row added up after.
    """
    pieces = np.maximum(1, -(-np.diff(matrix.indptr) // _LONGEST_BAG))
    first_bag = np.concatenate([[0], np.cumsum(pieces)])
    within = np.arange(first_bag[-1]) - np.repeat(first_bag[:-1], pieces)
    offset = torch.from_numpy(np.repeat(matrix.indptr[:-1], pieces) + within * _LONGEST_BAG).to(device)
    index = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)
    weight = torch.from_numpy(matrix.data.astype(np.float32)).to(device)
    bag = torch.arange(int(first_bag[-1]), device=device)
    first = torch.from_numpy(first_bag[:-1].astype(np.int64)).to(device)
    embedding_bag = torch.nn.functional.embedding_bag

    def times(dense: Tensor) -> Tensor:
        parts = embedding_bag(index, dense, offset.long(), mode="sum", per_sample_weights=weight)
        return embedding_bag(bag, parts, first, mode="sum")

    return times


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns' space, zero columns beyond its dimension."""
    for _ in range(2):  # the second time mends what the first loses where columns are nearly dependent
        strength, rotation = _eigen(_gram(columns))
        keep = strength > _SMALLEST * strength[-1]
        scale = torch.where(keep, strength.clamp(min=1e-300).rsqrt(), 0.0)
        columns = _times_small(columns, rotation * scale)
    return columns


def _gram(columns: Tensor) -> Tensor:
    """[L, L] float64 products of the columns with each other."""

    def gram(block: slice) -> Tensor:
        part = columns[block].double()
        return part.T @ part

    return _sum(map_blocks(gram, len(columns), columns.device))


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0]).cpu()


def _times_small(columns: Tensor, small: Tensor) -> Tensor:
    small = small.to(columns.device, columns.dtype)
    return torch.cat(map_blocks(lambda block: columns[block] @ small, len(columns), columns.device))


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric)
    return values, vectors
