"""Settings of evaluation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` measures."""

    # "clustering", "top1_language", "uniform", "product_of_experts", "bayes"; the first one is the
    # headline. None: the first two where the clusterer allows them, else "uniform".
    rules: list[str] | None = None
    top_k: list[int] = field(default_factory=lambda: [1, 2])  # besides all experts, for each routed rule
    max_docs: int | None = None  # None evaluates every document of the split
    batch_size: int = 16  # documents a forward pass
    bootstrap_samples: int = 1000  # resamplings of the documents behind each 95 % interval
    seed: int = 1234  # of the resampling
