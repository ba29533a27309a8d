"""The router: how far the text so far is from every cluster, and so which experts to trust, token by token.

Row j of a document is about the text of its tokens 0..j-1, special tokens left out. As upstream, it serves
the prediction of token j+1 and so lags by one token; row 0 is the empty text, whose vector is zero.

A document is read once, in C++ (csrc/prefix_router.h), where upstream's programs decode and vectorise every
prefix anew.
Shape letters: N texts, T tokens, K clusters, D SVD dimensions.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo import _csrc
from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
from xelm_nemo.errors import ConfigError
from xelm_nemo.router.pieces import Decoder, Pieces, decoded, pieces_of
from xelm_nemo.router.weights import router_weights

_TOKENS_A_BLOCK = 1 << 16  # their distances are in memory at a time


class Router:
    """Places texts, and every prefix of a document, among the clusters of a tf-idf clusterer."""

    def __init__(self, clusterer: object) -> None:
        """Take a clusterer.

        Raises:
            ConfigError: it cannot place texts.
        """
        if not isinstance(clusterer, TfidfClusterer):
            raise ConfigError(
                "clustering.method is not 'tfidf', so the ensemble rules 'clustering' and "
                "'product_of_experts' cannot place a text; set clustering.method=tfidf, or choose "
                "evaluation.rules among 'top1_language', 'bayes' and 'uniform'."
            )
        self._features, self._centroids = clusterer.features, clusterer.centroids
        self._in_cpp = self._features.prefix_router(self._centroids)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The router of a clusterer's folder, such as `runs/udhr/clusterer`.

        Raises:
            ArtifactError: a file is missing or damaged.
            ConfigError: the clusterer cannot place texts.
        """
        return cls(Clusterer.load(Path(folder)))

    @property
    def centroids(self) -> NDArray[np.float32]:
        """Cluster centres, [K, D]."""
        return self._centroids

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, D] of length 1, or 0 for a text without a known term."""
        return self._features.transform(texts)

    def prefix_weights(
        self,
        token_ids: Sequence[int],
        tokenizer: Decoder,
        temperature: float = 0.1,
        top_k: int | None = None,
        rule: str = "upstream",
    ) -> Tensor:
        """Weight of every expert at every token of a document.

        Args:
            token_ids: the T input tokens.
            tokenizer: turns token ids back into text.
            temperature: T of `router_weights`, which has the formulas.
            top_k: experts kept per token; None keeps all.
            rule: "upstream" or "paper".

        Returns:
            float32 [T, K]; rows sum to 1.

        Raises:
            ConfigError: an unknown rule, a temperature not above 0, or a top_k below 1.
        """
        (distance_TK,) = self.prefix_squared_distances([token_ids], tokenizer)
        return router_weights(distance_TK, temperature=temperature, rule=rule, top_k=top_k)

    def prefix_squared_distances(
        self, documents: Sequence[Sequence[int]], tokenizer: Decoder
    ) -> Iterator[Tensor]:
        """Squared distance d^2 from every proper prefix of each document to every centroid, float64 [T, K].

        Documents are measured some at a time, on as many threads as transform texts.

        Args:
            documents: the input tokens of each.
            tokenizer: turns token ids back into text; XGLM's and OPT's in time O(T), others in O(T^2).
        """
        pieces = pieces_of(tokenizer)
        for block in _blocks(documents):
            is_known = [pieces is not None and pieces.cover(ids_T) for ids_T in block]
            known = [ids_T for ids_T, fits in zip(block, is_known, strict=True) if fits]
            measured = iter(self._measure(known, pieces) if pieces else ())
            for ids_T, fits in zip(block, is_known, strict=True):
                yield next(measured) if fits else self._decode_all(ids_T.tolist(), tokenizer)

    def _measure(self, documents: Sequence[NDArray[np.int32]], pieces: Pieces) -> Sequence[Tensor]:
        ids = np.concatenate([np.empty(0, np.int32), *documents])
        lengths = [len(ids_T) for ids_T in documents]
        distance_TK = self._in_cpp.distances(
            pieces.in_cpp, ids, np.cumsum(lengths).tolist(), num_threads=self._features.num_threads
        )
        return torch.split(torch.from_numpy(distance_TK), lengths)

    def _decode_all(self, ids: list[int], tokenizer: Decoder) -> Tensor:
        return torch.cat([self.empty_1K, self.stream(tokenizer).append(ids[:-1])])[: len(ids)]

    @cached_property
    def empty_1K(self) -> Tensor:
        """d^2 of the empty text, whose vector is 0, float64 [1, K]."""
        return torch.from_numpy((self._centroids.astype(np.float64) ** 2).sum(1)[None])

    def stream(self, tokenizer: Decoder) -> "PrefixStream":
        """A document that grows by its tokens, as in generation."""
        return PrefixStream(self._in_cpp, tokenizer)


class PrefixStream:
    """A document that grows, and how far it is from every centroid; `Router.stream` makes one."""

    def __init__(self, router: _csrc.PrefixRouter, tokenizer: Decoder) -> None:
        """Begin without a token."""
        self._stream, self._tokenizer = _csrc.PrefixStream(router), tokenizer
        self._pieces = pieces_of(tokenizer)
        self._ids: list[int] = []

    def append(self, token_ids: Sequence[int]) -> Tensor:
        """d^2 of the document after each of these further tokens, float64 [len(token_ids), K]."""
        start = len(self._ids)
        self._ids += token_ids
        if self._pieces is not None and self._pieces.cover(_array(token_ids)):
            return torch.from_numpy(self._stream.append(self._pieces.in_cpp, _array(token_ids)))
        self._pieces = None  # what follows builds on a text that was decoded
        texts = [decoded(self._tokenizer, self._ids[: j + 1]) for j in range(start, len(self._ids))]
        return torch.from_numpy(self._stream.replace(texts))


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(ids, np.int32)


def _blocks(documents: Sequence[Sequence[int]]) -> Iterator[list[NDArray[np.int32]]]:
    block: list[NDArray[np.int32]] = []
    size = 0
    for document in documents:
        block.append(_array(document))
        size += len(document)
        if size >= _TOKENS_A_BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
