"""k-means on dense vectors, with clusters of equal size or without that bound, on a GPU where there is one.

Upstream's balanced k-means works on batches of 50,000 or more, of which the last one decides, starts from
unseeded random rows and leaves some cost on the table in its auction. This one takes all vectors at once,
starts by k-means++ (Arthur & Vassilvitskii, 2007), and gives every iteration the cheapest balanced
assignment, exactly so at the end and nearly on the way there. Starts are compared on a sample.

Distances are counted in integers (`_Points`), so that draws, ties and sizes are exact.

N documents, K clusters, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo import device
from xelm_nemo.clustering.balance import balanced_assignment, nearly_balanced_assignment
from xelm_nemo.clustering.blocks import map_blocks
from xelm_nemo.clustering.prices import COST_LIMIT
from xelm_nemo.errors import ConfigError

_ROWS_A_BLOCK = 1 << 16  # bounds the float64 copies of squared_distances
_SAMPLE = 1 << 15  # documents on which starts are compared,
_SAMPLE_A_CLUSTER = 1 << 8  # or more, for many clusters
_TOLERANCE = 1e-4  # a run ends when an iteration saves less than this share of the cost

_Price = NDArray[np.int64] | None  # [K], of an assignment that is balanced, or nearly
_Assign = Callable[[Tensor, _Price], tuple[Tensor, _Price]]  # from the costs, and prices to begin with


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
        seed: of the k-means++ starts and of the sample.
        max_iterations: Lloyd iterations at most of a run, which stops sooner when one saves next to nothing.
        balanced: sizes differ by at most one; otherwise each document takes its nearest centroid.
        num_starts: runs from different starts; the one with the lowest cost is kept, or gone on from where
            there are more documents than a sample.

    Raises:
        ConfigError: K is less than 1 or more than N, or there is no start or no iteration to run.
    """
    num_documents = len(vectors)
    if not 1 <= num_clusters <= num_documents:
        raise too_many_clusters(num_clusters, num_documents)
    for name, count in {"max_iterations": max_iterations, "num_starts": num_starts}.items():
        if count < 1:
            raise ConfigError(f"clustering.{name}={count} leaves k-means nothing to run; use 1 or more.")
    points = _Points(torch.as_tensor(np.ascontiguousarray(vectors, np.float32)).to(device.device()))
    rng = np.random.default_rng(seed)
    few = max(_SAMPLE, _SAMPLE_A_CLUSTER * num_clusters)
    sample = points.some(rng, few) if num_documents > few else points
    starts = (_plus_plus_start(sample, num_clusters, rng) for _ in range(num_starts))
    exact, nearly = (balanced_assignment, _nearly) if balanced else (_nearest, _nearest)
    first = exact if sample is points else nearly
    runs = (_run(sample, start, None, max_iterations, first) for start in starts)
    best = min(runs, key=lambda run: run.cost)
    if sample is not points:  # exactly only where it counts, at the end
        best = _run(points, best.centroids, best.price, max_iterations, nearly)
        if balanced:
            best = _run(points, best.centroids, best.price, max_iterations, exact)
    assignment, rank = _numbered_by_first(best.cluster.cpu().numpy())
    centroids = best.centroids.cpu().numpy().astype(np.float32)[rank.argsort()]
    return KMeans(centroids, assignment, best.cost)


def too_many_clusters(num_clusters: int, num_documents: int) -> ConfigError:
    """What to say of more clusters than there are documents."""
    return ConfigError(
        f"clustering.num_clusters={num_clusters} cannot divide {num_documents} documents; "
        f"use 1 to {num_documents}, or more documents."
    )


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


class _Points:
    """Vectors on their device, and what distances between them are counted in."""

    def __init__(self, vectors: Tensor, unit: float | None = None) -> None:
        self.vectors = vectors
        self.squares = vectors.square().sum(1)
        # No centroid lies farther out than the farthest vector.
        self.unit = unit or max(4 * float(self.squares.max()), 1e-30) / COST_LIMIT

    def __len__(self) -> int:
        return len(self.vectors)

    def some(self, rng: np.random.Generator, count: int) -> "_Points":
        """Some of them, in order."""
        chosen = np.sort(rng.choice(len(self), count, replace=False))
        return _Points(self.vectors[torch.from_numpy(chosen).to(self.vectors.device)], self.unit)

    def costs(self, centroids: Tensor) -> Tensor:
        """[N, K] int32, squared distances to [K, D] centroids."""
        centroids = centroids.float()
        offset = centroids.square().sum(1)

        def costs(block: slice) -> Tensor:
            product = self.vectors[block] @ centroids.T
            square = (self.squares[block, None] + offset).sub_(product, alpha=2).div_(self.unit)
            return square.clamp_(0, COST_LIMIT).round_().int()

        return torch.cat(map_blocks(costs, len(self), self.vectors.device))

    def means(self, cluster: Tensor, num_clusters: int) -> tuple[Tensor, float]:
        """[K, D] float64 means of clusters that are not empty, and the cost of having them as centroids."""

        def sums(block: slice) -> tuple[Tensor, Tensor]:
            vectors, own = self.vectors[block].double(), cluster[block, None]
            member = vectors.new_zeros(len(own), num_clusters).scatter_(1, own, 1)
            return member.T @ vectors, vectors.square().sum()

        parts, squares = zip(*map_blocks(sums, len(self), self.vectors.device), strict=True)
        size = torch.bincount(cluster, minlength=num_clusters)
        means: Tensor = sum(parts) / size[:, None]
        return means, max(0.0, float(sum(squares) - (size * means.square().sum(1)).sum()))


@dataclass(frozen=True)
class _Fit:
    cluster: Tensor  # [N]
    centroids: Tensor  # [K, D] float64, the means of the clusters
    cost: float
    price: _Price


def _plus_plus_start(points: _Points, num_clusters: int, rng: np.random.Generator) -> Tensor:
    """K distinct rows, each the best of a few that are drawn by their squared distance from those before.

    Greedy k-means++, as its authors suggest at the end of their paper: what counts is the sum of all
    documents' squared distances to the nearest row.
    """
    draws = 2 + int(np.log(num_clusters))
    chosen = [int(rng.integers(len(points)))]
    nearest = points.costs(points.vectors[chosen])[:, 0].long()
    while len(chosen) < num_clusters:
        nearest[chosen] = 0
        # Where only copies of chosen rows are left, any of those that are not chosen yet will do.
        weight = (
            nearest if nearest.any() else torch.ones_like(nearest).index_fill_(0, _on(nearest, chosen), 0)
        )
        total = weight.cumsum(0)
        drawn = _on(nearest, rng.integers(int(total[-1]), size=draws).tolist())
        rows = torch.searchsorted(total, drawn, right=True)
        left = points.costs(points.vectors[rows]).minimum(nearest[:, None])
        best = left.sum(0).argmin()
        chosen.append(int(rows[best]))
        nearest = left[:, best].contiguous()
    return points.vectors[chosen]


def _on(like: Tensor, values: list[int]) -> Tensor:
    return torch.tensor(values, device=like.device)


def _run(points: _Points, centroids: Tensor, price: _Price, max_iterations: int, assign: _Assign) -> _Fit:
    """Lloyd's iterations, each assigning to the centroids and then moving them."""
    fit = None
    for _ in range(max_iterations):
        cluster, price = assign(points.costs(centroids), price)
        centroids, total = points.means(cluster, len(centroids))
        saved = fit.cost - total if fit else np.inf
        if fit is None or saved > 0:
            fit = _Fit(cluster, centroids, total, price)
        if saved <= _TOLERANCE * total:
            break
    assert fit is not None
    return fit


def _nearest(cost: Tensor, _: _Price) -> tuple[Tensor, _Price]:
    """The nearest centroid."""
    return _none_empty(cost, cost.argmin(1)), None


def _nearly(cost: Tensor, price: _Price) -> tuple[Tensor, _Price]:
    """Nearly balanced."""
    cluster, price = nearly_balanced_assignment(cost, price)
    return _none_empty(cost, cluster), price


def _none_empty(cost: Tensor, cluster: Tensor) -> Tensor:
    """A cluster that nobody takes gets the worst-placed document of a cluster with others."""
    size = torch.bincount(cluster, minlength=cost.shape[1])
    for k in torch.nonzero(size == 0)[:, 0].tolist():
        own = cost.gather(1, cluster[:, None])[:, 0].where(size[cluster] > 1, -1)
        moved = own.argmax()
        size[cluster[moved]] -= 1
        size[k] += 1
        cluster[moved] = k
    return cluster


def _numbered_by_first(assignment: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The assignment with clusters numbered by their first documents, and the new number of each old one."""
    _, first, inverse = np.unique(assignment, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[first.argsort()] = np.arange(len(first))
    return rank[inverse].astype(np.int32), rank
