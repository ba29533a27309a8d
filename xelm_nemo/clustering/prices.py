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
_APPROACH = (
    *(_Stage(_FEW, eps, 0.01) for eps in (0.2, 0.07, 0.02, 0.007)),
    *(_Stage(512, eps, 0.002) for eps in (0.007, 0.002)),
)
_LAST = _Stage(None, 0.002, 0.0003)
_NEAR = 30 * _LAST.tolerance  # shortest paths move that many in little time
_NOTHING = -80.0  # of a logarithm; exp is ten times slower on a CPU where its result is no normal number
_MAX_STEPS, _MAX_HALVINGS = 12, 5
_LONGEST = 100  # a step, in units of eps: where hardly anyone is undecided, Newton's goes far astray


@dataclass(frozen=True)
class _Smooth:
    """The smoothed dual at some prices."""

    value: float
    wanted: NDArray[np.float64]  # [K], the documents that want each cluster
    shared: Tensor  # [K, K] float64, the sum over documents of products of two weights

    @property
    def excess(self) -> NDArray[np.float64]:
        """[K], by how many documents more than a fair share want each cluster."""
        excess: NDArray[np.float64] = self.wanted - self.wanted.mean()
        return excess

    @property
    def misplaced(self) -> float:
        """The share of documents that are too many somewhere."""
        return float(np.abs(self.excess).sum() / (2 * self.wanted.sum()))


def balancing_prices(cost: Tensor, price: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """[K] prices, none below 0, that are nearly right for balanced clusters; those given, for few documents.

    Args:
        cost: [N, K] int32.
        price: [K], where to begin, None for zeros; from prices that are nearly right, such as those of the
            iteration before, the last stage alone goes on.
    """
    num_documents, num_clusters = cost.shape
    if price is None:
        price = np.zeros(num_clusters, np.int64)
    if num_documents <= _FEW * num_clusters:
        return price
    scale = _scale(_sample(cost, _FEW * num_clusters))
    if scale < 1:  # all clusters are alike
        return price
    if price.any():
        near, excess = _maximise(cost, price, _LAST.eps * scale, _LAST.tolerance)
        if excess <= _NEAR:
            return near
        price = np.zeros_like(price)  # the way from prices that are far off is longer
    for stage in (*_APPROACH, _LAST):
        rows = cost if stage.rows is None else _sample(cost, stage.rows * num_clusters)
        price, _ = _maximise(rows, price, stage.eps * scale, stage.tolerance)
    return price


def _scale(cost: Tensor) -> float:
    """What a cluster costs more than the best one, on average; counted in integers, as any threads do it."""
    total = int(cost.sum(dtype=torch.int64)) - cost.shape[1] * int(cost.amin(1).sum(dtype=torch.int64))
    return total / cost.numel()


def _sample(cost: Tensor, count: int) -> Tensor:
    if count >= len(cost):
        return cost
    # Not every so many rows: corpora interleave their languages.
    return cost[(torch.arange(count, device=cost.device) * 2654435761) % len(cost)]


def _maximise(
    cost: Tensor, price: NDArray[np.int64], eps: float, tolerance: float
) -> tuple[NDArray[np.int64], float]:
    """Better prices, and the share of documents that are still too many somewhere."""
    here = _smooth(cost, price, eps)
    for _ in range(_MAX_STEPS):
        if here.misplaced <= tolerance:
            break
        step = _newton_step(here, eps)
        step *= min(1.0, _LONGEST * eps / max(np.abs(step).max(), 1.0))
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
    return price, here.misplaced


def _smooth(cost: Tensor, price: NDArray[np.int64], eps: float) -> _Smooth:
    price_K = torch.as_tensor(price, dtype=torch.int32, device=cost.device)

    def smooth(block: slice) -> tuple[Tensor, Tensor, Tensor]:
        total = cost[block] + price_K
        least = total.amin(1, keepdim=True)
        weight = ((least - total).float() / eps).clamp_(min=_NOTHING).exp_()
        norm = weight.sum(1, keepdim=True)
        weight /= norm
        value = least.sum(dtype=torch.float64) - eps * norm.log_().sum(dtype=torch.float64)
        return value, weight.sum(0).double(), (weight.T @ weight).double()

    values, wanted, shared = zip(*map_blocks(smooth, len(cost), cost.device), strict=True)
    value = float(sum(values)) - len(cost) / len(price) * float(price.sum())
    return _Smooth(value, sum(wanted).cpu().numpy(), sum(shared).cpu())


def _newton_step(here: _Smooth, eps: float) -> NDArray[np.float64]:
    """Solve (diag(row sums of shared) - shared + ridge) x = eps excess, the same whatever the threads."""
    ridge = 1e-4 * here.wanted.mean()
    matrix = torch.diag(here.shared.sum(1) + ridge) - here.shared
    with one_thread():
        step: NDArray[np.float64] = torch.linalg.solve(matrix, torch.from_numpy(eps * here.excess)).numpy()
    return step
