"""The experts' weights while a text grows.

Shape letters: T tokens, E experts.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from xelm_nemo.clustering.kmeans import squared_distances
from xelm_nemo.router.prefix import Decoder, TextClusterer, prefix_squared_distances
from xelm_nemo.router.weights import keep_top_k, router_log_weights


class Routing(Protocol):
    """Gives weights to experts."""

    def log_weights(self, ids: Sequence[int], first: int) -> Tensor:
        """Log-weights for what tokens first, first + 1, ... of a text predict, float32 [T, E]."""


class FixedRouting:
    """The same weights at every token."""

    def __init__(self, weights: Sequence[float], *, top_k: int | None) -> None:
        """Normalise the weights, of which one at least is above 0."""
        log_w_1E = torch.tensor([list(weights)], dtype=torch.float64).log()
        self._log_w_1E = keep_top_k(torch.log_softmax(log_w_1E, -1), top_k).float()

    def log_weights(self, ids: Sequence[int], first: int) -> Tensor:
        """As `Routing`."""
        return self._log_w_1E.expand(len(ids) - first, -1)


class PrefixRouting:
    """The router's weights, from the text before each token, exactly as in evaluation."""

    def __init__(
        self,
        clusterer: TextClusterer,
        tokenizer: Decoder,
        *,
        temperature: float,
        rule: str,
        top_k: int | None,
    ) -> None:
        """Route by a tf-idf clusterer."""
        self._clusterer, self._tokenizer = clusterer, tokenizer
        self._how = {"temperature": temperature, "rule": rule, "top_k": top_k}

    def log_weights(self, ids: Sequence[int], first: int) -> Tensor:
        """As `Routing`."""
        if first == 0:
            distance_TE = prefix_squared_distances(ids, self._tokenizer, self._clusterer)
        else:
            texts = [self._text(ids[:j]) for j in range(first, len(ids))]
            vectors = self._clusterer.features.transform(texts)
            distance_TE = torch.from_numpy(squared_distances(vectors, self._clusterer.centroids))
        return router_log_weights(distance_TE, **self._how)  # type: ignore[arg-type]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
