"""Settings of clustering."""

from dataclasses import dataclass, field

METHODS = ("tfidf", "typology", "random")


@dataclass(frozen=True)
class ClusteringConfig:
    """How documents are divided among experts."""

    method: str = "tfidf"  # "tfidf", "typology" (by language) or "random" (the ablation)
    num_clusters: int = 8
    seed: int = 1234
    # tf-idf
    source: str | None = None  # a folder with upstream's tfidf.pkl and kmeans.pkl; None fits a clusterer here
    analyzer: str = "word"  # upstream's word tokens; "char_wb" for corpora with unspaced scripts
    ngram_range: list[int] = field(default_factory=lambda: [1, 1])
    max_features: int | None = 500_000  # as X-ELM; None keeps every term
    svd_dim: int = 100
    balanced: bool = True
    max_iterations: int = 20
    num_starts: int = 4  # k-means runs, of which the one with the lowest cost is kept
    # typology
    languages: list[str] | None = None  # None takes the languages found in the corpus
