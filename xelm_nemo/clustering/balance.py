"""The assignment to clusters of equal size that costs least, for millions of documents.

Each cluster has a price, and a document takes the cluster whose cost plus price is lowest. An assignment of
that kind with balanced sizes is the cheapest of all balanced ones (complementary slackness of the
transportation problem), so what is looked for are K prices, however many documents there are:

1. Newton's method on a smoothed problem (`prices.py`), first for a sample of the documents.
2. Successive shortest paths (csrc/balanced_assign.cpp) for the last documents, among those that are nearly
   as well off in a second cluster; exact, since costs and prices are integers.

N documents, K clusters.
"""

from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo import _csrc
from xelm_nemo.clustering.blocks import map_blocks
from xelm_nemo.clustering.prices import balancing_prices

_TAKEN = (1 << 31) - 1
_NO_LIMIT = (1 << 63) - 1
_QUANTILE_SAMPLE = 1 << 14
_NEARLY = 1.05


def balanced_assignment(
    cost: Tensor, price: NDArray[np.int64] | None = None
) -> tuple[Tensor, NDArray[np.int64]]:
    """The cheapest assignment with floor(N/K) documents a cluster, and N mod K clusters with one more.

    Args:
        cost: [N, K] int32, from 0 to `prices.COST_LIMIT`, on any device.
        price: [K], a guess; a good one saves time.

    Returns:
        [N] int64, the cluster of each document, and [K], prices at which each document is where cost + price
        is lowest, the clusters with one more being no cheaper than the others.
    """
    price = balancing_prices(cost, price)
    num_documents, num_clusters = cost.shape
    cluster, gap = _look(cost, price)
    for turn in count():
        crowd = (_counts(cluster, num_clusters) - num_documents // num_clusters).clip(min=0).sum()
        # Enough documents at the borders for every move; if not, the next turn begins where this one ends.
        share = 2**turn * (16 * crowd + 64 * num_clusters) / num_documents
        reach = _quantile(gap, share) if share < 1 else _TAKEN
        movable = gap <= reach
        settled = _counts(cluster[~movable], num_clusters)
        rows, own = cost[movable].cpu().numpy(), cluster[movable].cpu().numpy()
        limit = reach if reach < _TAKEN else _NO_LIMIT
        moved, price, left = _csrc.balanced_assign(rows, own, price, settled, limit)
        cluster[movable] = torch.as_tensor(moved, dtype=torch.int64, device=cost.device)
        price -= price.min()
        if left == 0:
            return cluster, price
        gap = _look(cost, price, cluster)[1]
    raise AssertionError("not reached")


def nearly_balanced_assignment(
    cost: Tensor, price: NDArray[np.int64] | None = None
) -> tuple[Tensor, NDArray[np.int64]]:
    """What costs least at prices that are nearly right, in a fraction of the time.

    Args:
        cost: [N, K] int32, as above.
        price: [K], a guess.

    Returns:
        [N] int64 and [K], as above; clusters have up to a twentieth more documents than their share.
    """
    price = balancing_prices(cost, price)
    cluster, _ = _look(cost, price)
    # Documents that are all alike want one cluster, however well the smoothed problem divides them.
    if _counts(cluster, cost.shape[1]).max() > _NEARLY * len(cost) / cost.shape[1]:
        return balanced_assignment(cost, price)
    return cluster, price


def _look(cost: Tensor, price: NDArray[np.int64], cluster: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[N], the best cluster (or the one given), and [N], how much worse the best other one is."""
    price_K = torch.as_tensor(price, dtype=torch.int32, device=cost.device)

    def look(block: slice) -> tuple[Tensor, Tensor]:
        total = cost[block] + price_K
        own = total.argmin(1, keepdim=True) if cluster is None else cluster[block, None]
        least = total.gather(1, own)
        return own[:, 0], (total.scatter_(1, own, _TAKEN).amin(1, keepdim=True) - least)[:, 0]

    clusters, gaps = zip(*map_blocks(look, len(cost), cost.device), strict=True)
    return torch.cat(clusters), torch.cat(gaps)


def _counts(index: Tensor, size: int) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = torch.bincount(index, minlength=size).cpu().numpy()
    return counts


def _quantile(values: Tensor, share: float) -> int:
    """About the smallest of the values such that this share of them is no larger."""
    sample = values[:: max(1, len(values) // _QUANTILE_SAMPLE)].sort().values
    return int(sample[min(len(sample) - 1, int(share * len(sample)))])
