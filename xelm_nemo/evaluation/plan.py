"""Which ensembles an evaluation measures, checked against what the experts and the clusterer allow."""

from collections.abc import Mapping, Sequence

from xelm_nemo.ensemble.rules import RULES, TEXT_RULES, Ensemble
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.scoring import HeldOutDocument, ModelSource

_NAMES = {
    "clustering": "ensemble",
    "uniform": "uniform",
    "top1_language": "top-1 by language",
    "product_of_experts": "product of experts",
    "bayes": "bayes",
}
_TOP_K_RULES = ("clustering", "product_of_experts", "bayes")


def select_documents(documents: Sequence[HeldOutDocument], max_docs: int | None) -> list[HeldOutDocument]:
    """At most max_docs documents, evenly spread, so that files sorted by language keep every language.

    Raises:
        ConfigError: max_docs is below 1.
        CorpusError: there is no document.
    """
    if max_docs is not None and max_docs < 1:
        raise ConfigError(
            f"evaluation.max_docs={max_docs!r} leaves no document; use 1 or more, or null for all."
        )
    if not documents:
        raise CorpusError("corpus.test_split has no document to evaluate on; name a split that has some.")
    if max_docs is None or max_docs >= len(documents):
        return list(documents)
    return [documents[i * len(documents) // max_docs] for i in range(max_docs)]


def plan_ensembles(
    config: EvaluationConfig, *, num_experts: int, can_route: bool, has_language_expert: bool
) -> list[Ensemble]:
    """The ensembles to measure, the headline first.

    Args:
        config: rules and top-k wanted.
        num_experts: values of top-k from here on are left out: they keep every expert.
        can_route: whether the clusterer places texts (tf-idf).
        has_language_expert: whether each language has an expert.

    Raises:
        ConfigError: an unknown rule, one that the clusterer does not allow, or a top-k below 1.
    """
    rules = _default_rules(can_route, has_language_expert) if config.rules is None else config.rules
    _check_rules(rules, can_route, has_language_expert)
    if not all(top_k >= 1 for top_k in config.top_k):
        raise ConfigError(
            f"evaluation.top_k={list(config.top_k)} keeps no expert; use numbers from 1 up, or []."
        )
    ensembles = []
    for rule in dict.fromkeys(rules):
        ensembles.append(Ensemble(_NAMES[rule], rule))
        if rule in _TOP_K_RULES:
            kept = sorted(k for k in set(config.top_k) if k < num_experts)
            ensembles += [Ensemble(f"{_NAMES[rule]} top-{k}", rule, k) for k in kept]
    return ensembles


def check_inputs(
    documents: Sequence[HeldOutDocument],
    experts: Sequence[ModelSource],
    num_clusters: int,
    ensembles: Sequence[Ensemble],
    language_expert: Mapping[str, int] | None,
) -> None:
    """Find before any model is loaded what would fail after all of them.

    Raises:
        ConfigError: experts and clusters differ in number, or a language has no expert.
    """
    if not experts:
        raise ConfigError("the expert set is empty; run `train` first.")
    if num_clusters != len(experts):
        raise ConfigError(
            f"clustering.num_clusters={num_clusters} but the set has {len(experts)} trained experts; "
            "train the missing ones (training.train_clusters=null) before evaluating."
        )
    if not any(ensemble.rule == "top1_language" for ensemble in ensembles):
        return
    missing = sorted(
        {str(document.lang) for document in documents if document.lang not in (language_expert or {})}
    )
    if missing:
        raise ConfigError(
            f"evaluation.rules has 'top1_language', but no expert is known for lang={missing}; "
            "leave that rule out, or remove these documents from the split."
        )
    _check_language_experts(language_expert or {}, len(experts))


def _check_language_experts(language_expert: Mapping[str, int], num_experts: int) -> None:
    outside = {lang: expert for lang, expert in language_expert.items() if not 0 <= expert < num_experts}
    if outside:
        raise ConfigError(
            f"languages belong to experts {outside}, but the set has {num_experts} trained experts, 0 to "
            f"{num_experts - 1}; train the missing ones (training.train_clusters=null) before evaluating."
        )


def _default_rules(can_route: bool, has_language_expert: bool) -> list[str]:
    rules = ["clustering"] * can_route + ["top1_language"] * has_language_expert
    return rules or ["uniform"]


def _check_rules(rules: Sequence[str], can_route: bool, has_language_expert: bool) -> None:
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown or not rules:
        raise ConfigError(f"evaluation.rules={list(rules)} must be some of {list(RULES)}.")
    unroutable = [rule for rule in rules if rule in TEXT_RULES]
    if unroutable and not can_route:
        raise ConfigError(
            f"evaluation.rules={unroutable} route by text, which needs clustering.method=tfidf; "
            "cluster that way, or use 'top1_language', 'bayes' or 'uniform'."
        )
    if "top1_language" in rules and not has_language_expert:
        raise ConfigError(
            "evaluation.rules='top1_language' needs an expert for each language, and the documents have no "
            "language; set corpus.lang_key, or leave the rule out."
        )
