"""Documents as points: tf-idf, reduced by an SVD, on the unit sphere.

The pipeline of c-BTM and X-ELM (their `train_clusterer`): the terms and the values of `clustering.tfidf`;
a truncated SVD, here seeded; unit rows again. Besides upstream's words there are character
n-grams within words ("char_wb"), for scripts that put no spaces between words; these keep digits and know no
stop words.

N documents, F terms, D SVD dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xelm_nemo import device
from xelm_nemo._csrc import PrefixRouter, sparse_times
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.clustering.rows_on_disk import store_rows
from xelm_nemo.clustering.stop_words import stop_words
from xelm_nemo.clustering.svd import right_singular_vectors
from xelm_nemo.clustering.tfidf import TfidfVectorizer, too_few_terms
from xelm_nemo.errors import ArtifactError, ConfigError, CorpusError
from xelm_nemo.files import load_arrays, read_json, save_arrays, scratch_folder, write_json


@dataclass(frozen=True)
class FeatureSettings:
    """How texts become terms."""

    analyzer: str  # "word" or "char_wb"
    ngram_range: tuple[int, ...]  # shortest and longest n-gram, in words or characters
    max_features: int | None  # the most frequent terms are kept
    stop_words: tuple[str, ...] = ()  # left out


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """A fitted map from texts to unit vectors; `fit` or `load` makes one.

    Attributes:
        settings: how texts become terms.
        terms: the vocabulary, F of them.
        idf: [F] float64.
        components: [D, F] float64, the SVD's right singular vectors.
    """

    settings: FeatureSettings
    terms: list[str]
    idf: NDArray[np.float64]
    components: NDArray[np.float64]

    @classmethod
    def fit(cls, texts: Iterable[str], config: ClusteringConfig) -> Self:
        """Learn vocabulary, idf and SVD; the same texts, settings and seed give the same features.

        Texts are read twice and not kept: for the vocabulary, and into a matrix in the folder of temporary
        files. D is `svd_dim`, or what the data allow: at most N - 1 and F - 1, at least 1.

        Raises:
            ConfigError: a setting that cannot work, or texts with fewer than two terms.
            CorpusError: there were more texts, or fewer, the second time.
            ArtifactError: there is no room for temporary files.
        """
        settings = FeatureSettings(
            config.analyzer, tuple(config.ngram_range), config.max_features, stop_words(config.stop_words)
        )
        if config.svd_dim < 1:
            raise ConfigError(
                f"clustering.svd_dim={config.svd_dim} leaves no dimension; use 1 or more, say 100."
            )
        vectorizer = TfidfVectorizer(**asdict(settings)).fit(texts)
        if len(vectorizer.terms_) < 2:
            raise too_few_terms(config.analyzer, len(vectorizer.terms_), vectorizer.num_documents_)
        components = _components(vectorizer, texts, config)
        return cls(settings, vectorizer.terms_, vectorizer.idf_, components)

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N, D] unit rows; the row of a text without a known term is zero."""
        if not texts:
            return np.zeros((0, len(self.components)), np.float32)
        return np.concatenate(list(self.vectors(texts)))

    def vectors(self, texts: Iterable[str]) -> Iterator[NDArray[np.float32]]:
        """The rows of `transform`, some at a time; texts are read once and not kept."""
        from sklearn.preprocessing import normalize

        for values, columns, starts in self._vectorizer.parts(texts):
            reduced = sparse_times(
                starts, columns, values, slice(None), self._component_of_term, num_threads=self.num_threads
            )
            yield np.asarray(normalize(reduced, copy=False), np.float32)

    def prefix_router(self, centroids: NDArray[np.floating[Any]]) -> PrefixRouter:
        """What measures growing texts against centroids [K, D]; it takes 8 F K bytes."""
        centroids = centroids.astype(np.float64)
        return PrefixRouter(
            self._vectorizer.in_cpp,
            components=self._component_of_term,
            products=self._component_of_term @ centroids.T,
            squares=(centroids**2).sum(1),
        )

    @property
    def num_threads(self) -> int:
        """How many threads transform."""
        return self._vectorizer.num_threads

    def use_threads(self, num_threads: int) -> None:
        """Transform with so many threads; the result is the same with any number."""
        self._vectorizer.num_threads = num_threads

    def top_terms(self, vector: NDArray[np.floating[Any]], n: int) -> list[str]:
        """The n terms that weigh most in a [D] vector taken back through the SVD, heaviest first."""
        weight = vector.astype(np.float64) @ self.components
        return [self.terms[i] for i in np.argsort(-weight, kind="stable")[:n]]

    def save(self, folder: Path) -> None:
        """Write `features.json`, `vocabulary.json` and `features.safetensors`; `load` gives the same bits."""
        write_json(folder / "features.json", asdict(self.settings))
        write_json(folder / "vocabulary.json", self.terms)
        save_arrays(folder / "features.safetensors", {"idf": self.idf, "components": self.components})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; nothing is fitted again.

        Raises:
            ArtifactError: a file is missing or damaged, or the files do not belong together.
        """
        settings = read_json(folder / "features.json")
        terms = read_json(folder / "vocabulary.json")
        arrays = load_arrays(folder / "features.safetensors")
        idf, components = arrays["idf"], arrays["components"]
        if idf.shape != (len(terms),) or components.shape[1:] != (len(terms),):
            raise ArtifactError(
                f"{folder} holds {len(terms)} terms, idf {list(idf.shape)} and components "
                f"{list(components.shape)}, which do not belong together; delete it and run `cluster` again."
            )
        lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
        return cls(FeatureSettings(**settings | lists), terms, idf, components)

    @cached_property
    def _component_of_term(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.components.T)  # [F, D]: what a term adds lies together

    @cached_property
    def _vectorizer(self) -> TfidfVectorizer:
        return TfidfVectorizer.restored(self.terms, self.idf, **asdict(self.settings))


def _components(
    vectorizer: TfidfVectorizer, texts: Iterable[str], config: ClusteringConfig
) -> NDArray[np.float64]:
    with scratch_folder("xelm_rows_") as folder:
        parts = vectorizer.parts(texts, by_first_use=True)
        tfidf = store_rows(parts, len(vectorizer.terms_), folder)
        if tfidf.shape[0] != vectorizer.num_documents_:
            raise CorpusError(
                f"the corpus had {vectorizer.num_documents_} documents and has {tfidf.shape[0]} when it is "
                "read again; wait until nothing writes to it, and run `cluster` again."
            )
        dim = max(1, min(config.svd_dim, *(size - 1 for size in tfidf.shape)))
        return right_singular_vectors(tfidf, dim, seed=config.seed, device=device.device())
