"""C++ parts of xelm_nemo; the sources are in csrc/."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def balanced_assign(
    cost: NDArray[np.integer[Any]],
    cluster_of: NDArray[np.integer[Any]],
    price: NDArray[np.integer[Any]],
    settled: NDArray[np.integer[Any]],
    reach: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Balance an assignment that is best at given prices; the total cost is then the least there is.

    Args:
        cost: [N, K] int32, of the documents that may move.
        cluster_of: [N], the cluster of each, where its cost + price is lowest.
        price: [K].
        settled: [K], how many further documents stay; other clusters are worse for them by more than `reach`.
        reach: by how much prices may move apart; 2**63 - 1 sets no limit.

    Returns:
        [N], the clusters; [K], the prices, each document still being where cost + price is lowest; and how
        many documents are still too many somewhere, which is 0 unless `reach` ended the work.

    Raises:
        ValueError: shapes that do not fit together, a cluster that is not the best, or no cluster at all.
    """
