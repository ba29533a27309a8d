"""Settings of clustering."""

from dataclasses import dataclass, field
from typing import Any

METHODS = ("tfidf", "typology", "random")


@dataclass(frozen=True)
class ClusteringConfig:
    """How documents are divided among experts."""

    method: str = "tfidf"  # "tfidf", "typology" (by language) or "random" (the ablation)
    num_clusters: int = 8
    seed: int = 1234
    fit_on: Any = "all"  # the training split; or a shard of it, such as train/00000, or a list of shards
    assignment: str | None = None  # a folder of upstream's {sp_id, cluster} files, used instead of assigning
    remap: str | None = None  # from=to: how an sp_id of these begins, and how it begins in this corpus
    # tf-idf
    source: str | None = None  # a folder with upstream's tfidf.pkl and kmeans.pkl; None fits a clusterer here
    analyzer: str = "word"  # upstream's word tokens; "char_wb" for corpora with unspaced scripts
    ngram_range: list[int] = field(default_factory=lambda: [1, 1])
    stop_words: list[str] = field(default_factory=list)  # of these languages; [] leaves every word in
    max_features: int | None = 500_000  # as X-ELM; None keeps every term
    svd_dim: int = 100
    balanced: bool = True
    max_iterations: int = 20
    num_starts: int = 4  # k-means runs, of which the one with the lowest cost is kept
    # typology
    languages: list[str] | None = None  # None takes the languages found in the corpus

    @property
    def fit_shards(self) -> list[str] | None:
        """The shards that the clusterer is fitted on, `<split>/<shard>` each; None for the training split."""
        if self.fit_on == "all":
            return None
        return [self.fit_on] if isinstance(self.fit_on, str) else list(self.fit_on)
