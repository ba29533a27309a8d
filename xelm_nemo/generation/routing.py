"""The experts' weights while a text grows.

Shape letters: T tokens, E experts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from xelm_nemo.clustering.clusterer import TfidfClusterer
from xelm_nemo.router.pieces import Decoder
from xelm_nemo.router.router import PrefixStream, Router
from xelm_nemo.router.weights import keep_top_k, router_log_weights

# Texts that are read on, some kilobytes each. With fewer than a batch has rows, all would begin anew.
_MOST_STREAMS = 4096


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
    """The router's weights, from the text before each token, exactly as in evaluation.

    A text is read on from where it was at the call before; one that is not known, as that of a beam whose
    parent another beam goes on with, is read from its beginning.
    """

    def __init__(
        self,
        clusterer: TfidfClusterer,
        tokenizer: Decoder,
        *,
        temperature: float,
        rule: str,
        top_k: int | None,
    ) -> None:
        """Route by a tf-idf clusterer."""
        self._router, self._tokenizer = Router(clusterer), tokenizer
        self._how = {"temperature": temperature, "rule": rule, "top_k": top_k}
        self._streams: OrderedDict[tuple[int, ...], PrefixStream] = OrderedDict()  # by what each has read

    def log_weights(self, ids: Sequence[int], first: int) -> Tensor:
        """As `Routing`."""
        distance_TE = self._read_on(tuple(ids[:-1]), max(first - 1, 0))
        if first == 0:
            distance_TE = torch.cat([self._router.empty_1K, distance_TE])
        distance_TE = distance_TE[first - len(ids) :]
        return router_log_weights(distance_TE, **self._how)  # type: ignore[arg-type]

    def _read_on(self, ids: tuple[int, ...], known: int) -> Tensor:
        """Distances after each token that a stream has not read yet, the ones from `known` on at least."""
        stream = self._streams.pop(ids[:known], None)
        if stream is None:
            stream, known = self._router.stream(self._tokenizer), 0
        self._streams[ids] = stream
        if len(self._streams) > _MOST_STREAMS:
            self._streams.popitem(last=False)
        return stream.append(ids[known:])
