"""The definition of tf-idf that the C++ is held to: scikit-learn, with upstream's tokenizer or its own."""

import re

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer as Definition

WORD = r"(?u)\b\w\w+\b"


def upstream_words(text):
    return [word for word in re.findall(WORD, text) if not word[0].isdigit()]


def definition(
    *, analyzer="word", tokenizer="upstream", ngram_range=(1, 1), stop_words=(), max_features=None
):
    by_upstream = analyzer == "word" and tokenizer == "upstream"
    return Definition(
        analyzer=analyzer,
        tokenizer=upstream_words if by_upstream else None,
        token_pattern=None if by_upstream else WORD,
        ngram_range=tuple(ngram_range),
        stop_words=stop_words if isinstance(stop_words, str) else list(stop_words or ()) or None,
        max_features=max_features,
    )


def assert_same_rows(ours, theirs):
    """The same rows: the same places in memory, and the same bits in them."""
    assert ours.shape == theirs.shape
    for name in ("indptr", "indices", "data"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other), name
