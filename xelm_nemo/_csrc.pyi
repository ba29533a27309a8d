"""C++ parts of xelm_nemo; the sources are in csrc/."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def balanced_assign(distance: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """Put each document into its nearest cluster with room; cluster sizes differ by at most one.

    Greedy over (document, cluster) pairs in order of distance, ties by document, then cluster.

    Args:
        distance: [N, K], read as float32; infinities are allowed.

    Returns:
        [N], the cluster of each document.

    Raises:
        ValueError: not a matrix, a NaN in it, or documents without any cluster.
    """
