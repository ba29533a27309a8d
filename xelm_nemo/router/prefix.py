"""How far the text so far is from every cluster, token by token.

This is upstream's own algorithm: every prefix is decoded and vectorised anew.
Shape letters: T tokens, K clusters, D SVD dimensions.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo.clustering.kmeans import squared_distances
from xelm_nemo.errors import ConfigError


class TextFeatures(Protocol):
    """Turns texts into vectors of length 1, or 0 for a text without a known term."""

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts, float32 [N, D]."""


@runtime_checkable
class TextClusterer(Protocol):
    """A clusterer that can place any text among its clusters, as a tf-idf clusterer does."""

    @property
    def features(self) -> TextFeatures:
        """The features in which clusters were made."""

    @property
    def centroids(self) -> NDArray[np.float32]:
        """Cluster centres, float32 [K, D]."""


class Decoder(Protocol):
    """The one method of a Hugging Face tokenizer that the router calls."""

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """The text of the tokens."""


def prefix_squared_distances(token_ids: Sequence[int], tokenizer: Decoder, clusterer: object) -> Tensor:
    """Squared distance from every proper prefix of a document to every centroid.

    Row j is the text of tokens 0..j-1, special tokens left out. As upstream, it serves the prediction
    of token j+1 and so lags by one token; row 0 is the empty text, whose vector is zero.

    Args:
        token_ids: the T input tokens of a document.
        tokenizer: turns token ids back into text.
        clusterer: a `TextClusterer`.

    Returns:
        d^2 as float32 [T, K].

    Raises:
        ConfigError: the clusterer cannot place texts.
    """
    if not isinstance(clusterer, TextClusterer):
        raise ConfigError(
            "clustering.method is not 'tfidf', so the ensemble rules 'clustering' and 'product_of_experts' "
            "cannot place a text; set clustering.method=tfidf, or choose evaluation.rules among "
            "'top1_language', 'bayes' and 'uniform'."
        )
    texts = [
        # No clean-up: it would join "do n't", and the router must see the text as the clusterer did.
        tokenizer.decode(token_ids[:j], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for j in range(len(token_ids))
    ]
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    distance_NK = squared_distances(clusterer.features.transform(list(row_of)), clusterer.centroids)
    return torch.from_numpy(distance_NK[[row_of[text] for text in texts]])
