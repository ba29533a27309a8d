"""The smallest language models with known answers: bigram tables over three letters."""

import math
from dataclasses import dataclass

import numpy as np
import torch

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


class LetterShares:
    """Text features: how many a, how many b, scaled to length 1."""

    def __init__(self):
        self.calls = []

    def transform(self, texts):
        self.calls.append(list(texts))
        counts = np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


@dataclass
class LetterClusterer:
    """Stands in for a tf-idf clusterer."""

    features: LetterShares
    centroids: np.ndarray

    @property
    def num_clusters(self):
        return len(self.centroids)


@dataclass
class LanguageClusterer:
    """Stands in for a clusterer that cannot place texts."""

    num_clusters: int
