"""Perplexity of experts, dense model and ensembles on the same held-out documents.

Each model scores the documents that need it once; every ensemble is then mixed from those scores.
Shape letters: E experts, M models and ensembles, N documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xelm_nemo.clustering.clusterer import TfidfClusterer
from xelm_nemo.ensemble.placement import Team
from xelm_nemo.ensemble.rules import Ensemble, Evidence
from xelm_nemo.evaluation.config import TEXT_RULES, EvaluationConfig, recorded_evaluation
from xelm_nemo.evaluation.costs import ensemble_cost
from xelm_nemo.evaluation.documents import EncodedDocument, HeldOutDocument, encode_documents
from xelm_nemo.evaluation.evidence import Text, documents_of_experts, evidence_of, mixed_nats, nats_of, routed
from xelm_nemo.evaluation.passes import Pass
from xelm_nemo.evaluation.plan import (
    check_inputs,
    languages_without_expert,
    plan_ensembles,
    select_documents,
    with_expert,
)
from xelm_nemo.evaluation.result import Cost, EvaluationResult
from xelm_nemo.evaluation.scoring import ModelSource, Scores, run_models
from xelm_nemo.evaluation.summary import summarise, tabulate
from xelm_nemo.evaluation.targets import part_without_target, warn_of_left_out
from xelm_nemo.router.config import RouterConfig

ALONE = Team()


@dataclass(frozen=True)
class Models:
    """What is evaluated.

    Attributes:
        experts: one a cluster, in cluster order; None where one is missing.
        dense: the baseline, if there is one.
        seq_length: their context length.
        training_tokens: model -> tokens it was trained on, as far as known, for the report.
        others: further single models, such as a sparse one.
        costs: model -> what it takes to predict, as far as known, for the report.
    """

    experts: Sequence[ModelSource | None]
    dense: ModelSource | None
    seq_length: int
    training_tokens: Mapping[str, int]
    others: Sequence[ModelSource] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def clusters(self) -> list[int]:
        """The clusters that have an expert."""
        return [cluster for cluster, source in enumerate(self.experts) if source is not None]

    @property
    def present(self) -> list[ModelSource]:
        """The experts that there are, in cluster order."""
        return [source for source in self.experts if source is not None]


@dataclass(frozen=True)
class _Evaluation:
    """One evaluation, its documents of all subsets in a row; `left_out` are those without a target."""

    subsets: Mapping[str, Sequence[HeldOutDocument]]
    left_out: Mapping[str, Sequence[HeldOutDocument]]
    encoded: Sequence[EncodedDocument]
    ensembles: Sequence[Ensemble]
    models: Models
    text: Text
    router: RouterConfig
    config: EvaluationConfig

    @property
    def documents(self) -> list[HeldOutDocument]:
        return [document for of_subset in self.subsets.values() for document in of_subset]


def evaluate_ensemble(
    subsets: Mapping[str, Sequence[HeldOutDocument]],
    *,
    models: Models,
    text: Text,
    router: RouterConfig,
    config: EvaluationConfig,
    folder: Path,
    device: torch.device | str = "cpu",
    team: Team = ALONE,
) -> list[EvaluationResult]:
    """Score experts, dense model and ensembles; an interrupted evaluation goes on where it was.

    Every token after a document's first is scored, the closing special token included; of instruction data
    those of targets count, and an example whose source fills the context is left out. Each model is loaded
    once for all subsets, and only where its scores are not on disk.

    Args:
        subsets: name -> held-out documents; `config.max_docs` of each, evenly spread, are used.
        models: experts and dense model.
        text: tokenizer and clusterer.
        router: temperature and rule of the router.
        config: what to measure.
        folder: keeps each model's log-probabilities, `<name>.safetensors`.
        device: where the models are.
        team: the ranks that do it together.

    Returns:
        for each subset the scores overall, by language and by cluster, of every model and ensemble; nothing
        on ranks that only help.

    Raises:
        ConfigError: settings that contradict the experts or the clusterer.
        CorpusError: no document, one without a token, or no example with a target in its context.
        CheckpointError: a model's output is not finite.
    """
    evaluation = _prepare(subsets, models, text, router, config)
    if team.leads:
        warn_of_left_out(evaluation.left_out, models.seq_length)
    how = Pass(models.seq_length, config.stride, config.batch_tokens, device, folder)
    evidence = _look(evaluation) if team.leads or not config.each_expert else []
    needed_EN = _needed(evaluation, evidence)
    experts = [
        Scores(source, [evaluation.encoded[n] for n in needed_N], how)
        for source, needed_N in zip(models.present, needed_EN, strict=True)
    ]
    beside = [*([models.dense] if models.dense else []), *models.others]
    single = [Scores(source, evaluation.encoded, how) for source in beside]
    run_models([*experts, *single], team)
    if not team.leads:
        return []
    log_p_EN = [
        dict(zip(n, scores.read(), strict=True)) for n, scores in zip(needed_EN, experts, strict=True)
    ]
    mixed_MN = mixed_nats(evaluation.ensembles, evidence, evaluation.encoded, log_p_EN, router)
    alone = [*(experts if config.each_expert else []), *single]
    alone_MN = [list(map(nats_of, scores.read(), evaluation.encoded)) for scores in alone]
    return _results(evaluation, [scores.source for scores in alone], np.array([*alone_MN, *mixed_MN]))


def _prepare(
    subsets: Mapping[str, Sequence[HeldOutDocument]],
    models: Models,
    text: Text,
    router: RouterConfig,
    config: EvaluationConfig,
) -> _Evaluation:
    chosen = {
        name: select_documents(documents, config.max_docs, config.clusters)
        for name, documents in subsets.items()
    }
    documents = [document for of_subset in chosen.values() for document in of_subset]
    language_expert = with_expert(text.language_expert, models.experts)
    ensembles = plan_ensembles(
        config,
        num_experts=len(models.present),
        can_route=isinstance(text.clusterer, TfidfClusterer),
        has_language_expert=not languages_without_expert(documents, language_expert),
    )
    check_inputs(documents, models.experts, text.clusterer.num_clusters, ensembles, language_expert)
    cut = models.seq_length if config.stride is None else None
    encoded = encode_documents(documents, encode=text.encode, tokenizer=text.tokenizer, seq_length=cut)
    kept, left_out = part_without_target(chosen, encoded, models.seq_length)
    counted = [document for document in encoded if document.num_counted]
    return _Evaluation(kept, left_out, counted, ensembles, models, text, router, config)


def _look(evaluation: _Evaluation) -> list[Evidence]:
    routes = any(ensemble.rule in TEXT_RULES for ensemble in evaluation.ensembles)
    clusters = evaluation.models.clusters
    encoded, count = evaluation.encoded, len(evaluation.encoded)
    distances = routed(encoded, evaluation.text, evaluation.router, clusters) if routes else [None] * count
    return [
        evidence_of(
            *(document, of_document),
            language_expert=evaluation.text.language_expert,
            clusters=clusters,
            distance_TE=distance_TE,
            seed=evaluation.config.seed,
        )
        for document, of_document, distance_TE in zip(evaluation.documents, encoded, distances, strict=True)
    ]


def _needed(evaluation: _Evaluation, evidence: Sequence[Evidence]) -> list[list[int]]:
    """For each expert the documents that it is run on."""
    num_experts = len(evaluation.models.present)
    if evaluation.config.each_expert:
        return [list(range(len(evaluation.encoded)))] * num_experts
    return documents_of_experts(evaluation.ensembles, evidence, evaluation.router, num_experts)


def _results(
    evaluation: _Evaluation, alone: Sequence[ModelSource], nats_MN: NDArray[np.float64]
) -> list[EvaluationResult]:
    models, config, ensembles = evaluation.models, evaluation.config, evaluation.ensembles
    kinds = [_kind(models, source) for source in alone]
    missing = [f"expert{cluster}" for cluster, source in enumerate(models.experts) if source is None]
    results, start = [], 0
    for name, documents in evaluation.subsets.items():
        part = slice(start, start := start + len(documents))
        table = tabulate(
            names=[source.name for source in alone] + [ensemble.name for ensemble in ensembles],
            kinds=[*kinds, *["ensemble"] * len(ensembles)],
            nats_MN=nats_MN[:, part],
            documents=documents,
            encoded=evaluation.encoded[part],
        )
        settings = {"router": asdict(evaluation.router), "evaluation": recorded_evaluation(config)}
        result = summarise(
            table,
            dataset=name,
            settings={"seq_length": models.seq_length, **settings},
            training_tokens=dict(models.training_tokens),
            missing_experts=missing,
            num_left_out=len(evaluation.left_out[name]),
            costs=_costs(evaluation, alone),
            num_samples=config.bootstrap_samples,
            seed=config.seed,
        )
        results.append(result)
    return results


def _costs(evaluation: _Evaluation, alone: Sequence[ModelSource]) -> dict[str, Cost]:
    """What everything in the table takes; nothing where that is not known of all experts."""
    known, experts = evaluation.models.costs, [source.name for source in evaluation.models.present]
    if not known.keys() >= {*experts, *(source.name for source in alone)}:
        return {}
    of_experts = [known[name] for name in experts]
    together = {one.name: ensemble_cost(one, of_experts) for one in evaluation.ensembles}
    return {source.name: known[source.name] for source in alone} | together


def _kind(models: Models, source: ModelSource) -> str:
    if source is models.dense:
        return "dense"
    return "other" if source in models.others else "expert"
