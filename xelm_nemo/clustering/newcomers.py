"""A clusterer that knows further languages: each is a cluster of its own, and the others stay as they are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer, TypologyClusterer
from xelm_nemo.clustering.documents import Corpus
from xelm_nemo.clustering.features import TextFeatures
from xelm_nemo.errors import ConfigError, CorpusError

# A document without a known term has no vector and goes to whichever centroid is shortest. Where these are
# more than nine of ten, the new cluster would get next to nothing of its language.
_LEAST_KNOWN = 0.1


def with_newcomers(clusterer: Clusterer, languages: Sequence[str], documents: Corpus) -> Clusterer:
    """The clusterer with a cluster more for each language, numbered on from its own.

    By language, the new ones map to the new clusters. By text, each gets the mean of its documents' vectors
    for a centroid, among the features that there are; documents without a known term count for nothing.

    Args:
        clusterer: by language or by text.
        languages: new ones.
        documents: gone through once for each language, by text alone.

    Raises:
        ConfigError: the clusterer has the language already, or knows neither text nor language.
        CorpusError: there is no document of a language, or hardly one has a term that the features know.
    """
    total = clusterer.num_clusters + len(languages)
    if isinstance(clusterer, TypologyClusterer):
        if known := [language for language in languages if language in clusterer.cluster_of]:
            raise ConfigError(
                f"rounds.languages={list(languages)} has {known}, which the set has an expert for; "
                "leave them out."
            )
        new = zip(languages, range(clusterer.num_clusters, total), strict=True)
        return TypologyClusterer(total, clusterer.cluster_of | dict(new))
    if isinstance(clusterer, TfidfClusterer):
        means = [_mean(clusterer.features, language, documents) for language in languages]
        centroids = np.stack([*clusterer.centroids, *means])
        return TfidfClusterer(total, clusterer.features, centroids)
    raise ConfigError(
        f"rounds.base has a clusterer of kind {clusterer.kind!r}, in which a language has no place; add "
        "languages to a set that was clustered by typology or tfidf."
    )


def _mean(features: TextFeatures, language: str, documents: Corpus) -> NDArray[np.float32]:
    total, count, known = np.zeros(len(features.components)), 0, 0
    for vectors in features.vectors(document.text for document in documents if document.lang == language):
        total, count = total + vectors.sum(0, dtype=np.float64), count + len(vectors)
        known += np.count_nonzero(vectors.any(1))
    if not count:
        raise CorpusError(
            f"rounds.languages has {language!r}, and no training document says that it is of that language; "
            "add some, or set corpus.lang_key."
        )
    if known < max(1, _LEAST_KNOWN * count):
        raise CorpusError(
            f"rounds.languages has {language!r}, and {known} of its {count} training documents have a term "
            "that the clusterer of rounds.base knows, too few to tell it by; leave it out, or add it to a "
            "set that was clustered by typology."
        )
    mean: NDArray[np.float32] = (total / known).astype(np.float32)
    return mean
