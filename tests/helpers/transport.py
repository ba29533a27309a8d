"""Whether an assignment to clusters of equal size is the cheapest."""

import numpy as np
from scipy.optimize import linear_sum_assignment


def least_cost(cost):
    """The definition: documents matched with places, floor(N/K) a cluster and one more if it may."""
    num_documents, num_clusters = cost.shape
    base, extra = divmod(num_documents, num_clusters)
    fixed = np.repeat(np.arange(num_clusters), base)
    places = np.concatenate([fixed, np.arange(num_clusters)])
    # Places beyond floor(N/K) are K, of which N mod K are taken: as many dummy documents take the others.
    far = np.int64(cost.max(initial=0)) * max(num_documents, 1) + 1
    dummies = np.where(np.arange(len(places)) < len(fixed), far, 0)
    table = np.vstack([cost[:, places], np.tile(dummies, (num_clusters - extra, 1))])
    rows, columns = linear_sum_assignment(table)
    return int(table[rows, columns].sum())


def assert_cheapest(cost, cluster, price):
    """Complementary slackness: everybody is where cost + price is lowest, and extra places are dear."""
    cost, cluster = np.asarray(cost, np.int64), np.asarray(cluster)
    num_documents, num_clusters = cost.shape
    base, extra = divmod(num_documents, num_clusters)
    total = cost + price
    assert (total[np.arange(num_documents), cluster] == total.min(1)).all()
    larger = np.bincount(cluster, minlength=num_clusters) - base
    assert set(larger.tolist()) <= {0, 1} and larger.sum() == extra
    assert not extra or price[larger == 1].min() >= price[larger == 0].max()
