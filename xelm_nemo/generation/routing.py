"""The experts' weights while a text grows.

Shape letters: T tokens, E experts.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ConfigError
from xelm_nemo.router.pieces import Decoder
from xelm_nemo.router.router import PrefixStream, Router
from xelm_nemo.router.weights import keep_top_k, router_log_weights

if TYPE_CHECKING:
    from xelm_nemo.generation.model import XelmConfig

CLUSTERER = "clusterer"  # its folder in a set's
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


def mark_of(clusterer: Clusterer) -> str | None:
    """What tells a clusterer that places texts from any other; None for one that does not."""
    if not isinstance(clusterer, TfidfClusterer):
        return None
    return hashlib.sha256(clusterer.centroids.tobytes()).hexdigest()


def routing_of(folder: Path, config: "XelmConfig") -> Routing:
    """How the experts of an exported set are weighed.

    Raises:
        ConfigError: the weights or the clusterer are not these experts'.
        ArtifactError: there is no clusterer or no tokenizer, or it is damaged.
    """
    count = len(config.experts)
    if config.weights is not None:
        if len(config.weights) != count or not _have_a_sum(config.weights):
            raise ConfigError(
                f"weights={config.weights} are not one for each of {count} experts; "
                "give as many numbers from 0 up, not all of them 0."
            )
        return FixedRouting(config.weights, top_k=config.experts_per_token)
    clusterer = Clusterer.load(folder / CLUSTERER)
    _check_clusterer(folder / CLUSTERER, clusterer, config)
    if not isinstance(clusterer, TfidfClusterer):
        raise ConfigError(
            f"{folder / CLUSTERER} cannot place a text; set weights=[...], one for each expert, such as "
            f"{[1.0] * count}."
        )
    return PrefixRouting(clusterer, load_tokenizer(folder), **config.router, top_k=config.experts_per_token)


def _have_a_sum(weights: Sequence[float]) -> bool:
    return all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0


def _check_clusterer(folder: Path, clusterer: Clusterer, config: "XelmConfig") -> None:
    count = len(config.experts)
    if clusterer.num_clusters != count:
        raise ConfigError(
            f"{folder} has {clusterer.num_clusters} clusters and the set {count} experts; "
            "give the clusterer that the experts were trained with."
        )
    if config.clusterer is not None and mark_of(clusterer) != config.clusterer:
        raise ConfigError(
            f"{folder} is not the clusterer that the set was written with, so its clusters are not these "
            "experts'; put that one back, or export the set again."
        )
