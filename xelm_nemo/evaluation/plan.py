"""Which ensembles an evaluation measures, checked against what the experts and the clusterer allow."""

import logging
from collections.abc import Mapping, Sequence

from xelm_nemo.ensemble.rules import SCORE_RULES, Ensemble
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.evaluation.config import SPREAD_RULES, EvaluationConfig, rule_problems
from xelm_nemo.evaluation.documents import HeldOutDocument
from xelm_nemo.evaluation.scoring import ModelSource

logger = logging.getLogger(__name__)

_NAMES = {
    "clustering": "ensemble",
    "uniform": "uniform",
    "random": "random",
    "top1_language": "top-1 by language",
    "product_of_experts": "product of experts",
    "bayes": "bayes",
}
_TOP_K_RULES = ("clustering", "random", "product_of_experts", "bayes")


def select_documents(
    documents: Sequence[HeldOutDocument], max_docs: int | None, clusters: Sequence[int] | None = None
) -> list[HeldOutDocument]:
    """Documents of the clusters wanted, at most max_docs, evenly spread, so that every language stays.

    Raises:
        ConfigError: max_docs is below 1, or the clusters wanted have no document.
        CorpusError: there is no document.
    """
    if max_docs is not None and max_docs < 1:
        raise ConfigError(
            f"evaluation.max_docs={max_docs!r} leaves no document; use 1 or more, or null for all."
        )
    if not documents:
        raise CorpusError("corpus.test_split has no document to evaluate on; name a split that has some.")
    if clusters is not None:
        documents = [document for document in documents if document.cluster in clusters]
        if not documents:
            raise ConfigError(
                f"evaluation.clusters={list(clusters)} have no document in the split; name others, or null."
            )
    if max_docs is None or max_docs >= len(documents):
        return list(documents)
    return [documents[i * len(documents) // max_docs] for i in range(max_docs)]


def languages_without_expert(
    documents: Sequence[HeldOutDocument], language_expert: Mapping[str, int] | None
) -> list[str | None]:
    """The documents' languages that no expert is known for; None among them where a document has none."""
    languages = {document.lang for document in documents}
    return sorted(languages - (language_expert or {}).keys(), key=lambda lang: lang or "")


def with_expert(
    language_expert: Mapping[str, int] | None, experts: Sequence[ModelSource | None]
) -> dict[str, int]:
    """The languages whose expert is not among the missing ones."""
    missing = [cluster for cluster, source in enumerate(experts) if source is None]
    return {lang: expert for lang, expert in (language_expert or {}).items() if expert not in missing}


def plan_ensembles(
    config: EvaluationConfig, *, num_experts: int, can_route: bool, has_language_expert: bool
) -> list[Ensemble]:
    """The ensembles to measure, the headline first.

    Args:
        config: rules and top-k wanted.
        num_experts: values of top-k from here on keep every expert.
        can_route: whether the clusterer places texts (tf-idf).
        has_language_expert: whether every document has an expert by its language; if not, "top1_language"
            is measured only when config.rules names it, which `check_inputs` then refuses.

    Raises:
        ConfigError: an unknown rule, one that the clusterer does not allow, or a top-k below 1.
    """
    if problems := rule_problems(config, can_route=can_route):
        raise ConfigError("; ".join(problems) + ".")
    rules = _default_rules(can_route, has_language_expert) if config.rules is None else config.rules
    return [
        Ensemble(_name(rule, top_k, temperature), rule, top_k, temperature)
        for rule in dict.fromkeys(rules)
        for temperature in [None, *(dict.fromkeys(config.temperatures) if rule in SPREAD_RULES else [])]
        for top_k in _top_ks(config, rule, num_experts)
        # The nearest expert is the nearest at any temperature, unless the experts' scores have a say too.
        if not (top_k == 1 and temperature is not None and rule not in SCORE_RULES)
    ]


def _top_ks(config: EvaluationConfig, rule: str, num_experts: int) -> list[int | None]:
    """Numbers of experts to keep, all of them (None) first; those past the number of experts are all too."""
    if rule not in _TOP_K_RULES:
        return [None]
    wanted = {None if top_k is None or top_k >= num_experts else top_k for top_k in config.top_k}
    return sorted(wanted, key=lambda top_k: top_k or 0)


def _name(rule: str, top_k: int | None, temperature: float | None) -> str:
    kept = "" if top_k is None else f" top-{top_k}"
    return f"{_NAMES[rule]}{kept}" + ("" if temperature is None else f", T={temperature:g}")


def check_inputs(
    documents: Sequence[HeldOutDocument],
    experts: Sequence[ModelSource | None],
    num_clusters: int,
    ensembles: Sequence[Ensemble],
    language_expert: Mapping[str, int] | None,
) -> None:
    """Find before any model is loaded what would fail after all of them.

    Raises:
        ConfigError: experts and clusters differ in number, or "top1_language" is to be measured and a
            document has no language, or one without an expert.
    """
    if not any(experts):
        raise ConfigError("the expert set is empty; run `train` first.")
    if num_clusters != len(experts):
        raise ConfigError(
            f"clustering.num_clusters={num_clusters} but the set has {len(experts)} trained experts; "
            "give the clusterer that the experts were trained with, and one expert for each of its clusters."
        )
    if not any(ensemble.rule == "top1_language" for ensemble in ensembles):
        return
    missing = languages_without_expert(documents, language_expert)
    if None in missing:
        raise ConfigError(
            "evaluation.rules has 'top1_language', but some documents have no language; set corpus.lang_key, "
            "or leave that rule out."
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
    if not has_language_expert:
        logger.info("evaluate: no ensemble by language, for not every document's language has an expert")
    rules = ["clustering"] * can_route + ["top1_language"] * has_language_expert
    return rules or ["uniform"]
