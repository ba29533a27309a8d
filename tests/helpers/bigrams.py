"""The smallest language models with known answers: bigram tables over three letters."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from xelm_nemo.clustering.clusterer import TfidfClusterer
from xelm_nemo.clustering.features import FeatureSettings, TextFeatures

LETTERS = "ab "
EOS = 0  # letters have ids 1 to 3


class LetterTokenizer:
    """One token a letter, and `</s>`."""

    def decode(self, token_ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens and not clean_up_tokenization_spaces
        return "".join(LETTERS[i - 1] for i in token_ids if i != EOS)


def encode(text):
    return [EOS, *(LETTERS.index(letter) + 1 for letter in text), EOS]


class BigramModel:
    """Log-probability of the next token, looked up by the last one; counts how often it is run."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(len(LETTERS) + 1, len(LETTERS) + 1, generator=generator)
        self.calls = 0

    def __call__(self, tokens, targets):
        self.calls += 1
        return torch.log_softmax(self.table[tokens], -1).gather(-1, targets[..., None])[..., 0]

    def probability(self, previous, token):
        """The definition, without torch."""
        weights = [math.exp(logit) for logit in self.table[previous].tolist()]
        return weights[token] / sum(weights)


def letter_clusterer(centroids):
    """A tf-idf clusterer of how many a, how many b, scaled to length 1."""
    settings = FeatureSettings("char_wb", (1, 1), None)
    features = TextFeatures(settings, ["a", "b"], np.ones(2), np.eye(2))
    return TfidfClusterer(len(centroids), features, np.asarray(centroids, np.float32))


def letter_shares(text):
    """The same without it."""
    counts = np.array([text.count("a"), text.count("b")], dtype=np.float64)
    return counts / max(np.linalg.norm(counts), 1e-12)


@dataclass
class LanguageClusterer:
    """Stands in for a clusterer that cannot place texts."""

    num_clusters: int
