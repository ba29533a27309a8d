"""Text to tf-idf rows, against scikit-learn with upstream's tokenizer and with its own.

One thread each is timed by the seconds that a core worked for it, two threads by the clock. Of every file the
first documents are taken, up to 5 MB.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer as Peer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from xelm_nemo.bench.corpora import jsonl_files, texts_of
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.clustering.clusterer import TfidfClusterer
from xelm_nemo.clustering.tfidf import TfidfVectorizer
from xelm_nemo.errors import ConfigError

NGRAMS = {"word": (1, 1), "char_wb": (1, 3)}  # of each analyzer
VERBS = ("fit", "transform")
_WORD = re.compile(r"(?u)\b\w\w+\b")
_PARTS = ("indptr", "indices", "data")


@dataclass
class Inputs:
    """The texts, what the baseline makes of them, and the vectorizer of the last step."""

    texts: list[str]
    expected: Any
    last: Any = None


def make_inputs(sizes: Sizes) -> Inputs:
    """The texts of a corpus and the baseline's rows.

    Raises:
        ConfigError: there is no such corpus, analyzer or verb.
    """
    for key, known in {"verb": VERBS, "analyzer": tuple(NGRAMS)}.items():
        if sizes[key] not in known:
            raise ConfigError(f"{key}={sizes[key]!r} is not one; use one of {sorted(known)}.")
    with TemporaryDirectory() as folder:
        files = jsonl_files(sizes["corpus"], Path(folder))
        texts = [text for path in files for text in texts_of(path)]
    baseline = next(iter(_vectorizers(sizes["analyzer"]).values()))()
    return Inputs(texts, baseline.fit(texts).transform(texts))


def upstream_words(text: str) -> list[str]:
    """What upstream's tokenizer leaves of a text."""
    return [word for word in _WORD.findall(text) if not word[0].isdigit()]


def upstream_pipeline(clusterer: TfidfClusterer, analyzer: str) -> Pipeline:
    """What upstream makes vectors [N, D] of texts with, the clusterer's own numbers in it."""
    features = clusterer.features
    words = {"tokenizer": upstream_words, "token_pattern": None} if analyzer == "word" else {}
    vectorizer = Peer(vocabulary=features.terms, analyzer=analyzer, ngram_range=NGRAMS[analyzer], **words)
    vectorizer.idf_ = features.idf
    svd = TruncatedSVD(len(features.components))
    svd.components_ = features.components
    return make_pipeline(vectorizer, svd, Normalizer(copy=False))


def _vectorizers(analyzer: str) -> dict[str, Callable[[], Any]]:
    settings: dict[str, Any] = {"analyzer": analyzer, "ngram_range": NGRAMS[analyzer]}
    upstream = partial(Peer, tokenizer=upstream_words, token_pattern=None)
    return {
        **({"upstream": upstream} if analyzer == "word" else {}),
        "scikit_learn": partial(Peer, **settings),
        "ours": partial(TfidfVectorizer, num_threads=1, **settings),
        "ours_2_threads": partial(TfidfVectorizer, num_threads=2, **settings),
    }


def providers(sizes: Sizes) -> list[Provider]:
    """The peers first."""

    def provider(name: str, make: Callable[[], Any]) -> Provider:
        def prepare(inputs: Inputs) -> Callable[[], None]:
            vectorizer = make()
            vectorizer.fit(inputs.texts)
            inputs.last = vectorizer
            return partial(getattr(vectorizer, sizes["verb"]), inputs.texts)

        return Provider(name, prepare, clock=perf_counter if "threads" in name else thread_time, facts=facts)

    return [provider(name, make) for name, make in _vectorizers(sizes["analyzer"]).items()]


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """The share of the rows' parts that are not the baseline's, bit for bit."""
    rows = inputs.last.transform(inputs.texts)
    differing = [not np.array_equal(getattr(rows, part), getattr(inputs.expected, part)) for part in _PARTS]
    return {"bits": sum(differing) / len(differing)}


def facts(inputs: Inputs) -> dict[str, Any]:
    """How much text it was, and of how many terms."""
    num_bytes = sum(len(text.encode()) for text in inputs.texts)
    return {"bytes": num_bytes, "terms": inputs.last.idf_.shape[0]}


CASE = Case(
    name="featurise",
    sizes={"corpus": ("udhr",), "analyzer": ("word",), "verb": VERBS},
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    is_job=True,
)
