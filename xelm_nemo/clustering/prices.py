"""Prices of clusters at which about as many documents want each one.

They maximise the dual of the transportation problem, which is made smooth by letting a document want cluster
k with weight softmax(-(cost + price) / eps): then Newton's method is safe, and eps is lowered step by step.

N documents, K clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo.clustering.blocks import map_blocks, one_thread

# Of any cost, and of differences of prices, which at the optimum are no larger: their sum is an int32.
COST_LIMIT = 1 << 29


@dataclass(frozen=True)
class _Stage:
    """One smoothed problem on the way."""

    rows: int | None  # documents a cluster; None: all
    eps: float  # in units of what a cluster costs more than the best, on average
    tolerance: float  # the share of documents that may be too many somewhere


_FEW = 64  # documents a cluster: shortest paths alone are fast
_COURSE = (
    *(_Stage(_FEW, eps, 0.01) for eps in (0.2, 0.07, 0.02, 0.007)),
    *(_Stage(512, eps, 0.002) for eps in (0.007, 0.002)),
    _Stage(None, 0.002, 0.0003),
)
_MAX_STEPS, _MAX_HALVINGS = 12, 5


@dataclass(frozen=True)
class _Smooth:
    """The smoothed dual at some prices."""

    value: float
    wanted: NDArray[np.float64]  # [K], the documents that want each cluster
    shared: Tensor  # [K, K] float64, the sum over documents of products of two weights


def balancing_prices(cost: Tensor, price: NDArray[np.int64]) -> NDArray[np.int64]:
    """[K] prices, none below 0, that are nearly right for balanced clusters; those given, for few documents.

    Args:
        cost: [N, K] int32.
        price: [K], where to begin.
    """
    num_documents, num_clusters = cost.shape
    if num_documents <= _FEW * num_clusters:
        return price
    eps = None
    for stage in _COURSE:
        rows = cost if stage.rows is None else _sample(cost, stage.rows * num_clusters)
        eps = eps or float((rows.double().mean(1) - rows.amin(1)).mean())
        if eps < 1:  # all clusters are alike
            break
        price = _maximise(rows, price, stage.eps * eps, stage.tolerance)
    return price


def _sample(cost: Tensor, count: int) -> Tensor:
    if count >= len(cost):
        return cost
    # Not every so many rows: corpora interleave their languages.
    return cost[(torch.arange(count, device=cost.device) * 2654435761) % len(cost)]


def _maximise(cost: Tensor, price: NDArray[np.int64], eps: float, tolerance: float) -> NDArray[np.int64]:
    room = len(cost) / cost.shape[1]
    here = _smooth(cost, price, eps)
    for _ in range(_MAX_STEPS):
        excess = here.wanted - room
        if np.abs(excess).sum() <= 2 * tolerance * len(cost):
            break
        step = _newton_step(here, eps * excess, 1e-4 * room)
        for _ in range(_MAX_HALVINGS):
            moved = price + np.rint(step).astype(np.int64)
            moved = (moved - moved.min()).clip(max=COST_LIMIT)
            there = _smooth(cost, moved, eps)
            if there.value > here.value:
                break
            step /= 3
        else:
            break
        price, here = moved, there
    return price


def _smooth(cost: Tensor, price: NDArray[np.int64], eps: float) -> _Smooth:
    price_K = torch.as_tensor(price, dtype=torch.int32, device=cost.device)

    def smooth(block: slice) -> tuple[Tensor, Tensor, Tensor]:
        total = cost[block] + price_K
        least = total.amin(1, keepdim=True)
        weight = ((least - total).float() / eps).exp_()
        norm = weight.sum(1, keepdim=True)
        weight /= norm
        value = least.sum(dtype=torch.float64) - eps * norm.log_().sum(dtype=torch.float64)
        return value, weight.sum(0, dtype=torch.float64), (weight.T @ weight).double()

    values, wanted, shared = zip(*map_blocks(smooth, len(cost), cost.device), strict=True)
    value = float(sum(values)) - len(cost) / len(price) * float(price.sum())
    return _Smooth(value, sum(wanted).cpu().numpy(), sum(shared).cpu())


def _newton_step(here: _Smooth, wanted: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Solve (diag(row sums of shared) - shared + ridge) x = wanted, the same whatever the threads."""
    matrix = torch.diag(here.shared.sum(1) + ridge) - here.shared
    with one_thread():
        step: NDArray[np.float64] = torch.linalg.solve(matrix, torch.from_numpy(wanted)).numpy()
    return step
