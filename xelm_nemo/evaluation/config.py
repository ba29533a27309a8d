"""Settings of evaluation."""

from dataclasses import dataclass, field

RULES = ("clustering", "uniform", "top1_language", "product_of_experts", "bayes")
TEXT_RULES = ("clustering", "product_of_experts")  # these need the router, hence a tf-idf clusterer


@dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` measures."""

    # Some of RULES; the first one is the headline. None: "clustering" if the clusterer places texts, and
    # "top1_language" if every document has an expert by its language; else "uniform".
    rules: list[str] | None = None
    top_k: list[int] = field(default_factory=lambda: [1, 2])  # besides all experts, for each routed rule
    max_docs: int | None = None  # None evaluates every document of the split
    batch_size: int = 16  # documents a forward pass
    bootstrap_samples: int = 1000  # resamplings of the documents behind each 95 % interval
    seed: int = 1234  # of the resampling


def rule_problems(config: EvaluationConfig, *, can_route: bool) -> list[str]:
    """Why these rules cannot be measured; nothing when they can, or are left to the program.

    Args:
        config: rules and top-k wanted.
        can_route: whether the clusterer places texts (tf-idf).
    """
    problems = []
    if not all(top_k >= 1 for top_k in config.top_k):
        problems.append(f"evaluation.top_k={config.top_k} keeps no expert; use numbers from 1 up, or []")
    if config.rules is None:
        return problems
    if not config.rules or not set(config.rules) <= set(RULES):
        problems.append(f"evaluation.rules={config.rules} must be some of {list(RULES)}")
    unroutable = [rule for rule in config.rules if rule in TEXT_RULES]
    if unroutable and not can_route:
        problems.append(
            f"evaluation.rules={unroutable} route by text, which needs clustering.method=tfidf; "
            "cluster that way, or use 'top1_language', 'bayes' or 'uniform'"
        )
    return problems
