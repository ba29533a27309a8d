"""Upstream's balanced k-means, from its description: the thing to beat on cost.

Batches of 50,000 or more, one after the other; each runs Lloyd's iterations on itself alone from the
centroids that the one before left, and assigns by an auction whose step is a fiftieth of the range of
distances.

N documents, K clusters, D dimensions.
"""

import torch
from torch import Tensor

_BATCH, _ITERATIONS, _TOLERANCE = 50_000, 20, 1e-3
_MAX_TURNS = 10_000


def upstream_centroids(vectors: Tensor, num_clusters: int, seed: int) -> Tensor:
    """[K, D] centroids of [N, D] vectors; a batch loses its last N mod K rows."""
    generator = torch.Generator().manual_seed(seed)
    batches = torch.tensor_split(vectors, max(1, len(vectors) // _BATCH))
    start = torch.randperm(len(batches[0]), generator=generator)[:num_clusters]
    centroids = batches[0][start.to(vectors.device)].clone()
    for batch in batches:
        batch = batch[: len(batch) // num_clusters * num_clusters]
        for _ in range(_ITERATIONS):
            cluster = auction(-torch.cdist(batch, centroids).square())
            before = centroids
            centroids = torch.stack([batch[cluster == k].mean(0) for k in range(num_clusters)])
            if (centroids - before).norm(dim=1).sum() ** 2 < _TOLERANCE:
                break
    return centroids


def auction(score: Tensor) -> Tensor:
    """[N], the cluster that bids most for each document, from [N, K] scores; N has to be a multiple of K."""
    num_documents, num_clusters = score.shape
    score, each = score.T.contiguous(), num_documents // num_clusters
    eps = float((score.max() - score.min()) / 50)
    price, value = score.new_zeros(num_documents), score.clone()
    won: tuple[Tensor, Tensor] | None = None
    for turn in range(_MAX_TURNS):
        top, documents = torch.topk(value, min(each + 1, num_documents), dim=1)
        bids = torch.zeros_like(score)
        bids.scatter_(1, documents[:, :each], top[:, :each] - top[:, -1:] + max(eps, 1e-4))
        if won is not None and turn < 100:
            bids[won] = max(eps, 1e-4)
        high, bidder = bids.max(0)
        wanted = high > 0
        if wanted.all():
            return bidder
        document = wanted.nonzero()[:, 0]
        won = (bidder[document], document)
        price = price + high
        value = score - price
        value[won] = score[won]
    raise AssertionError("the auction does not end")
