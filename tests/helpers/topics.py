"""Sparse matrices with the spectrum of texts about a few topics."""

import numpy as np
from scipy import sparse


def documents(num_documents=600, num_terms=900, topics=12, seed=0):
    """Counts of words by topic, as weights of unit rows."""
    rng = np.random.default_rng(seed)
    chance = rng.dirichlet(np.full(num_terms, 0.05), topics)
    counts = np.stack([rng.multinomial(40, chance[rng.integers(topics)]) for _ in range(num_documents)])
    return sparse.csr_matrix(counts / np.linalg.norm(counts, axis=1, keepdims=True))
