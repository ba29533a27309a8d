"""How far perplexities would move on other documents of the same kind.

Shape letters: M models, N documents.
"""

import numpy as np
from numpy.typing import NDArray


def bootstrap_perplexities(
    nats_MN: NDArray[np.float64], num_tokens_N: NDArray[np.int64], *, num_samples: int, seed: int
) -> NDArray[np.float64]:
    """Perplexities on resampled sets of documents, the same sets for every model.

    Args:
        nats_MN: negative log-probability of each document under each model, [M, N].
        num_tokens_N: scored tokens of each document, [N].
        num_samples: how many sets to draw, with replacement, of N documents each.
        seed: of the draws.

    Returns:
        float64 [M, num_samples].
    """
    generator = np.random.default_rng(seed)
    num_docs = len(num_tokens_N)
    perplexities = np.empty((len(nats_MN), num_samples))
    for sample in range(num_samples):
        times_N = np.bincount(generator.integers(num_docs, size=num_docs), minlength=num_docs)
        perplexities[:, sample] = np.exp(nats_MN @ times_N / (num_tokens_N @ times_N))
    return perplexities


def interval95(samples: NDArray[np.float64]) -> tuple[float, float]:
    """The range that holds the middle 95 % of the samples."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
