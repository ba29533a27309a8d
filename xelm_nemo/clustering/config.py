"""Settings of clustering."""

from dataclasses import dataclass, field

METHODS = ("tfidf", "typology", "random")


@dataclass(frozen=True)
class ClusteringConfig:
    """How documents are divided among experts."""

    method: str = "tfidf"  # "tfidf", "typology" (by language) or "random" (the ablation)
    num_clusters: int = 8
    seed: int = 1234
    assignment: str | None = None  # a folder of upstream's {sp_id, cluster} files, used instead of assigning
    remap: str | None = None  # from=to: how an sp_id of these begins, and how it begins in this corpus
    # tf-idf
    analyzer: str = "word"  # upstream's word tokens; "char_wb" for corpora with unspaced scripts
    ngram_range: list[int] = field(default_factory=lambda: [1, 1])
    max_features: int | None = 500_000  # as X-ELM; None keeps every term
    svd_dim: int = 100
    balanced: bool = True
    max_iterations: int = 20
    num_starts: int = 4  # k-means runs, of which the one with the lowest cost is kept
    # typology
    languages: list[str] | None = None  # None takes the languages found in the corpus
