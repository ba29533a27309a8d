"""Clusterers: what `cluster` fits once, and everything after it asks for the cluster of a document."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.config import METHODS, ClusteringConfig
from xelm_nemo.clustering.documents import ClusterableDocument, Corpus, Documents, Texts
from xelm_nemo.clustering.features import FeatureSettings, TextFeatures
from xelm_nemo.clustering.kmeans import balanced_kmeans, squared_distances, too_many_clusters
from xelm_nemo.clustering.typology import typology_clusters
from xelm_nemo.clustering.upstream import read_upstream
from xelm_nemo.errors import ArtifactError, ConfigError, CorpusError
from xelm_nemo.files import load_arrays, read_json, save_arrays, write_json

_DOCUMENTS_A_BLOCK = 10_000  # as upstream; bounds the memory of `assign`
D = TypeVar("D", bound=ClusterableDocument)


def fit_clusterer(documents: Corpus, config: ClusteringConfig) -> "Clusterer":
    """The clusterer that the configuration asks for, fitted on these documents.

    Documents are gone through up to three times and not kept.

    Raises:
        ConfigError: a setting that cannot work, alone or with these documents.
        CorpusError: a document without a language, where languages are to be clustered; or documents that
            are not the same each time.
        ArtifactError: there is no room for temporary files.
    """
    if config.method not in METHODS:
        raise ConfigError(f"clustering.method={config.method!r} is unknown; use one of {list(METHODS)}.")
    if config.num_clusters < 1:
        raise ConfigError(f"clustering.num_clusters={config.num_clusters} leaves no cluster; use 1 or more.")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"clustering.seed={config.seed} is out of range; use 0 to {2**32 - 1}.")
    if config.source is not None:
        return _imported(Path(config.source), config)
    return _CLASS_OF[config.method].fit(documents, config)


def _imported(source: Path, config: ClusteringConfig) -> "Clusterer":
    if config.method != "tfidf":
        raise ConfigError(
            f"clustering.source={str(source)!r} is a tf-idf clusterer; set clustering.method=tfidf, or "
            "clustering.source=null."
        )
    terms, arrays = read_upstream(source)
    centroids = arrays["centroids"]
    if len(centroids) != config.num_clusters:
        raise ConfigError(
            f"clustering.num_clusters={config.num_clusters}, but clustering.source={str(source)!r} has "
            f"{len(centroids)} clusters; set clustering.num_clusters={len(centroids)}."
        )
    settings = FeatureSettings("word", (1, 1), None)
    features = TextFeatures(settings, terms, arrays["idf"], arrays["components"])
    return TfidfClusterer(len(centroids), features, centroids)


@dataclass(frozen=True, eq=False)
class Clusterer(ABC):
    """A map from documents to clusters 0 to `num_clusters` - 1."""

    kind: ClassVar[str]
    num_clusters: int

    @classmethod
    @abstractmethod
    def fit(cls, documents: Corpus, config: ClusteringConfig) -> Self:
        """A clusterer of this kind for such documents; use `fit_clusterer`, which checks first."""

    @abstractmethod
    def assign(self, documents: Documents) -> list[int]:
        """The cluster of each document, whatever the sizes of the clusters become."""

    def assigned(self, blocks: Iterable[Sequence[D]]) -> Iterator[tuple[D, int]]:
        """Each document of some lists with its cluster; while one list is assigned, the next is read."""
        with ThreadPoolExecutor(1) as pool:
            block: Sequence[D] = []
            clusters = pool.submit(self.assign, block)
            for following in blocks:
                ahead = pool.submit(self.assign, following)
                yield from zip(block, clusters.result(), strict=True)
                block, clusters = following, ahead
            yield from zip(block, clusters.result(), strict=True)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `clusterer.json`, whose `kind` says what else there is; `load` gives the same clusterer."""

    @staticmethod
    def load(folder: Path) -> "Clusterer":
        """The clusterer that `save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged, or does not belong to the others.
        """
        settings = read_json(folder / "clusterer.json")
        try:
            return _CLASS_OF[settings.pop("kind")]._load(folder, settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{folder / 'clusterer.json'} does not describe a clusterer ({error!r}); "
                "delete its folder and run `cluster` again."
            ) from error

    @classmethod
    def _load(cls, folder: Path, settings: dict[str, Any]) -> "Clusterer":
        return cls(**settings)


@dataclass(frozen=True, eq=False)
class TfidfClusterer(Clusterer):
    """The nearest centroid among text features; the router measures prefixes with the same two.

    Attributes:
        features: texts to [N, D] unit vectors.
        centroids: [K, D] float32.
    """

    kind = "tfidf"
    features: TextFeatures
    centroids: NDArray[np.float32]

    @classmethod
    def fit(cls, documents: Corpus, config: ClusteringConfig) -> Self:
        """Fit features, then (balanced) k-means on the vectors of all documents, which are held in memory."""
        texts = Texts(documents)
        features = TextFeatures.fit(texts, config)
        vectors = np.empty((0, len(features.components)), np.float32)
        for part in features.vectors(texts):
            start = len(vectors)
            vectors.resize((start + len(part), part.shape[1]), refcheck=False)  # grows where it lies
            vectors[start:] = part
        kmeans = balanced_kmeans(
            vectors,
            config.num_clusters,
            seed=config.seed,
            max_iterations=config.max_iterations,
            balanced=config.balanced,
            num_starts=config.num_starts,
        )
        return cls(config.num_clusters, features, kmeans.centroids)

    def assign(self, documents: Documents) -> list[int]:
        """The nearest centroid of each document; balance is for fitting only, as upstream."""
        clusters: list[int] = []
        for start in range(0, len(documents), _DOCUMENTS_A_BLOCK):
            texts = [document.text for document in documents[start : start + _DOCUMENTS_A_BLOCK]]
            distance = squared_distances(self.features.transform(texts), self.centroids)
            clusters += distance.argmin(1).tolist()
        return clusters

    def save(self, folder: Path) -> None:
        """Write the features and `centroids.safetensors` beside `clusterer.json`."""
        self.features.save(folder)
        save_arrays(folder / "centroids.safetensors", {"centroids": self.centroids})
        write_json(folder / "clusterer.json", {"kind": self.kind, "num_clusters": self.num_clusters})

    @classmethod
    def _load(cls, folder: Path, settings: dict[str, Any]) -> Self:
        features = TextFeatures.load(folder)
        centroids = load_arrays(folder / "centroids.safetensors")["centroids"]
        expected = (settings["num_clusters"], len(features.components))
        if centroids.shape != expected:
            raise ArtifactError(
                f"{folder} holds centroids {list(centroids.shape)}, its clusterer.json and features ask for "
                f"{list(expected)}; delete it and run `cluster` again."
            )
        return cls(settings["num_clusters"], features, centroids)


@dataclass(frozen=True, eq=False)
class TypologyClusterer(Clusterer):
    """The cluster of a document's language.

    Attributes:
        cluster_of: language code -> cluster.
    """

    kind = "typology"
    cluster_of: dict[str, int]

    @classmethod
    def fit(cls, documents: Corpus, config: ClusteringConfig) -> Self:
        """Cluster the configured languages, or those of the documents in alphabetical order."""
        languages = config.languages
        _check_enough(documents, config.num_clusters)
        if languages is None:
            languages = sorted({_language(document) for document in documents})
        return cls(config.num_clusters, typology_clusters(languages, config.num_clusters))

    def assign(self, documents: Documents) -> list[int]:
        """The cluster of each document's language.

        Raises:
            CorpusError: a document's language has no cluster.
        """
        unknown = next((document for document in documents if document.lang not in self.cluster_of), None)
        if unknown is not None:
            raise CorpusError(
                f"{unknown.sp_id} has lang={unknown.lang!r}, which has no cluster; cluster with "
                f"clustering.languages that hold it (these are {' '.join(self.cluster_of)}), or leave it out."
            )
        return [self.cluster_of[_language(document)] for document in documents]

    def save(self, folder: Path) -> None:
        """Write the language map into `clusterer.json`."""
        settings = {"num_clusters": self.num_clusters, "cluster_of": self.cluster_of}
        write_json(folder / "clusterer.json", {"kind": self.kind, **settings})


@dataclass(frozen=True, eq=False)
class RandomClusterer(Clusterer):
    """A random cluster that depends on `seed` and `sp_id` alone: the ablation of clustering."""

    kind = "random"
    seed: int

    @classmethod
    def fit(cls, documents: Corpus, config: ClusteringConfig) -> Self:
        """Take the seed; there is nothing to fit."""
        _check_enough(documents, config.num_clusters)
        return cls(config.num_clusters, config.seed)

    def assign(self, documents: Documents) -> list[int]:
        """A hash of seed and sp_id, modulo the number of clusters."""
        return [self._draw(document.sp_id) for document in documents]

    def _draw(self, sp_id: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}|{sp_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) % self.num_clusters

    def save(self, folder: Path) -> None:
        """Write the seed into `clusterer.json`."""
        settings = {"num_clusters": self.num_clusters, "seed": self.seed}
        write_json(folder / "clusterer.json", {"kind": self.kind, **settings})


_CLASS_OF: dict[str, type[Clusterer]] = {
    clusterer.kind: clusterer for clusterer in (TfidfClusterer, TypologyClusterer, RandomClusterer)
}


def _check_enough(documents: Corpus, num_clusters: int) -> None:
    found = sum(1 for _ in islice(documents, num_clusters))
    if found < num_clusters:
        raise too_many_clusters(num_clusters, found)


def _language(document: ClusterableDocument) -> str:
    if document.lang is None:
        raise CorpusError(
            f"{document.sp_id} has no language to cluster by; give it one under corpus.lang_key, "
            "or use clustering.method=tfidf."
        )
    return document.lang
