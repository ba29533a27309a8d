"""k-means on dense vectors, with clusters of equal size or without that bound.

Upstream's balanced k-means works on batches of 50,000 or more and starts from unseeded random rows; this one
takes all vectors at once, starts by k-means++ (Arthur & Vassilvitskii, 2007), and ends with the best
iteration of the best start, since the greedy balanced assignment may also raise the cost.

N documents, K clusters, D dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo._csrc import balanced_assign
from xelm_nemo.errors import ConfigError

_ROWS_A_BLOCK = 1 << 16  # bounds the float64 copies of squared_distances


@dataclass(frozen=True, eq=False)
class KMeans:
    """Clusters, numbered in the order of their first documents, so that cluster 0 holds document 0.

    Attributes:
        centroids: [K, D] float32, the mean of each cluster.
        assignment: [N] int32, the cluster of each document.
        cost: sum over documents of the squared distance to the centroid.
    """

    centroids: NDArray[np.float32]
    assignment: NDArray[np.int32]
    cost: float

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[K], the number of documents of each cluster."""
        return np.bincount(self.assignment, minlength=len(self.centroids))


def balanced_kmeans(
    vectors: NDArray[np.float32],
    num_clusters: int,
    *,
    seed: int,
    max_iterations: int,
    balanced: bool = True,
    num_starts: int = 1,
) -> KMeans:
    """Divide [N, D] vectors into K clusters that are never empty.

    Args:
        vectors: [N, D].
        num_clusters: K.
        seed: of the k-means++ start, the only random step.
        max_iterations: Lloyd iterations at most; a run stops sooner when the assignment repeats.
        balanced: sizes differ by at most one; otherwise each document takes its nearest centroid.
        num_starts: runs from different starts; the one with the lowest cost is kept.

    Raises:
        ConfigError: K is less than 1 or more than N, or there is no start or no iteration to run.
    """
    if not 1 <= num_clusters <= len(vectors):
        raise ConfigError(
            f"clustering.num_clusters={num_clusters} cannot divide {len(vectors)} documents; "
            f"use 1 to {len(vectors)}, or more documents."
        )
    for name, count in {"max_iterations": max_iterations, "num_starts": num_starts}.items():
        if count < 1:
            raise ConfigError(f"clustering.{name}={count} leaves k-means nothing to run; use 1 or more.")
    rng = np.random.default_rng(seed)
    starts = (_plus_plus_start(vectors, num_clusters, rng) for _ in range(num_starts))
    runs = (_iterations(vectors, start, max_iterations, balanced) for start in starts)
    return min(chain.from_iterable(runs), key=lambda kmeans: kmeans.cost)


def squared_distances(
    vectors: NDArray[np.floating[Any]], centroids: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """[N, K] squared Euclidean distances, never negative; computed in float64."""
    centroids = centroids.astype(np.float64)
    out = np.empty((len(vectors), len(centroids)), np.float32)
    for start in range(0, len(vectors), _ROWS_A_BLOCK):
        block = vectors[start : start + _ROWS_A_BLOCK].astype(np.float64)
        squares = (block**2).sum(1)[:, None] + (centroids**2).sum(1) - 2 * block @ centroids.T
        out[start : start + _ROWS_A_BLOCK] = squares.clip(min=0)
    return out


def _plus_plus_start(
    vectors: NDArray[np.float32], num_clusters: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """K distinct rows, each drawn with a chance in proportion to its squared distance from those before."""
    chosen = [int(rng.integers(len(vectors)))]
    nearest = np.full(len(vectors), np.inf)
    while len(chosen) < num_clusters:
        nearest = np.minimum(nearest, squared_distances(vectors, vectors[chosen[-1:]])[:, 0])
        nearest[chosen] = 0
        # Only copies of chosen rows are left: any of those that are not chosen yet will do.
        weight = nearest if nearest.any() else ~np.isin(np.arange(len(vectors)), chosen) * 1.0
        chosen.append(int(rng.choice(len(vectors), p=weight / weight.sum())))
    return vectors[chosen]


def _iterations(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32], max_iterations: int, balanced: bool
) -> Iterable[KMeans]:
    assign = balanced_assign if balanced else _assign_nearest
    previous = None
    for _ in range(max_iterations):
        assignment = _numbered_by_first(assign(squared_distances(vectors, centroids)))
        if previous is not None and np.array_equal(assignment, previous):
            return
        previous = assignment
        centroids = np.stack(
            [vectors[assignment == k].mean(0, dtype=np.float64) for k in range(len(centroids))]
        ).astype(np.float32)
        residual = vectors - centroids[assignment]
        yield KMeans(centroids, assignment, float(np.einsum("nd,nd->", residual, residual, dtype=np.float64)))


def _assign_nearest(distance: NDArray[np.float32]) -> NDArray[np.int32]:
    """The nearest centroid; one that nobody takes gets the worst-placed document of a cluster with others."""
    assignment: NDArray[np.int32] = distance.argmin(1).astype(np.int32)
    sizes = np.bincount(assignment, minlength=distance.shape[1])
    for k in np.flatnonzero(sizes == 0):
        own = np.where(sizes[assignment] > 1, distance[np.arange(len(distance)), assignment], -1)
        moved = own.argmax()
        sizes[assignment[moved]] -= 1
        sizes[k] += 1
        assignment[moved] = k
    return assignment


def _numbered_by_first(assignment: NDArray[np.int32]) -> NDArray[np.int32]:
    _, first, inverse = np.unique(assignment, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[first.argsort()] = np.arange(len(first))
    return rank[inverse]
