"""The definition of the prefix router, upstream's algorithm: each prefix is decoded and vectorised anew."""

import functools

import torch
from sklearn.preprocessing import normalize

from xelm_nemo.clustering.tfidf import TfidfVectorizer


def prefix_texts(token_ids, tokenizer):
    """The text before each token."""
    return [
        tokenizer.decode(token_ids[:j], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for j in range(len(token_ids))
    ]


@functools.cache
def vectorizer_of(features):
    """The vectorizer of text features."""
    return TfidfVectorizer.restored(features.terms, features.idf, **vars(features.settings))


def prefix_squared_distances(token_ids, tokenizer, clusterer):
    """Squared distance from the text before each token to every centroid, float64 [T, K].

    The vectorizer's rows are scikit-learn's to the last bit, by tests of its own. Upstream rounds vectors and
    distances to float32, which at distances around 2 changes weights by more than 1e-6.
    """
    features = clusterer.features
    rows_TF = vectorizer_of(features).transform(prefix_texts(token_ids, tokenizer))
    vectors_TD = torch.from_numpy(normalize(rows_TF @ features.components.T))
    centroids_KD = torch.from_numpy(clusterer.centroids).double()
    return (vectors_TD[:, None] - centroids_KD).square().sum(-1)
