"""Perplexity of experts, dense model and ensembles on the same held-out documents.

Each model scores every document once; every ensemble is then mixed from those scores.
Shape letters: E experts, T scored tokens of a document, M models and ensembles, N documents.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo.ensemble.mixture import mixture_log_prob
from xelm_nemo.ensemble.rules import Ensemble, Evidence, ensemble_log_weights
from xelm_nemo.evaluation.config import TEXT_RULES, EvaluationConfig
from xelm_nemo.evaluation.plan import (
    check_inputs,
    languages_without_expert,
    plan_ensembles,
    select_documents,
)
from xelm_nemo.evaluation.result import EvaluationResult
from xelm_nemo.evaluation.scoring import (
    EncodedDocument,
    HeldOutDocument,
    ModelSource,
    encode_documents,
    score_documents,
)
from xelm_nemo.evaluation.summary import summarise, tabulate
from xelm_nemo.router.config import RouterConfig
from xelm_nemo.router.prefix import Decoder, TextClusterer, prefix_squared_distances
from xelm_nemo.router.weights import router_log_weights


class Clusterer(Protocol):
    """What evaluation asks of every clusterer; one that can place texts is a `TextClusterer` too."""

    @property
    def num_clusters(self) -> int:
        """K, the number of experts that it is for."""


def evaluate_ensemble(
    documents: Sequence[HeldOutDocument],
    *,
    dataset: str,
    experts: Sequence[ModelSource],
    dense: ModelSource | None,
    tokenizer: Decoder,
    encode: Callable[[str], Sequence[int]],
    clusterer: Clusterer,
    language_expert: Mapping[str, int] | None,
    seq_length: int,
    router: RouterConfig,
    config: EvaluationConfig,
    folder: Path,
    device: torch.device | str = "cpu",
    training_tokens: Mapping[str, int] | None = None,
) -> EvaluationResult:
    """Score experts, dense model and ensembles; an interrupted evaluation goes on where it was.

    One document a sequence, cut on the right to seq_length + 1 tokens; every token after the first is
    scored, the closing special token included. One model is in memory at a time.

    Args:
        documents: held-out documents; `config.max_docs` of them, evenly spread, are used.
        dataset: name of the split, for the report.
        experts: one a cluster, in cluster order.
        dense: the baseline, if there is one.
        tokenizer: turns ids back into text, for the router.
        encode: text -> ids as the models were trained on, special tokens included.
        clusterer: routes prefixes if it can place texts (tf-idf).
        language_expert: language -> index of its expert, for the rule "top1_language"; a typology
            clusterer's `cluster_of` is one.
        seq_length: context length of the models.
        router: temperature and rule of the router.
        config: what to measure.
        folder: keeps each model's log-probabilities, `<name>.safetensors`.
        device: where the models are.
        training_tokens: model -> tokens it was trained on, for the report.

    Returns:
        scores overall, by language and by cluster, of every model and ensemble.

    Raises:
        ConfigError: settings that contradict the experts or the clusterer.
        CorpusError: no document, or one without a token.
        CheckpointError: a model's output is not finite.
    """
    documents = select_documents(documents, config.max_docs)
    ensembles = plan_ensembles(
        config,
        num_experts=len(experts),
        can_route=isinstance(clusterer, TextClusterer),
        has_language_expert=not languages_without_expert(documents, language_expert),
    )
    check_inputs(documents, experts, clusterer.num_clusters, ensembles, language_expert)
    encoded = encode_documents(documents, encode=encode, tokenizer=tokenizer, seq_length=seq_length)

    sources = [*experts, *([dense] if dense else [])]
    score = functools.partial(score_documents, batch_size=config.batch_size, device=device, folder=folder)
    log_p_MN = [score(source, encoded) for source in sources]
    route = functools.partial(_route, tokenizer=tokenizer, clusterer=clusterer, router=router)
    mixed_MN = _mix(ensembles, log_p_MN[: len(experts)], documents, encoded, route, language_expert or {})

    table = tabulate(
        names=[source.name for source in sources] + [ensemble.name for ensemble in ensembles],
        kinds=["dense" if source is dense else "expert" for source in sources]
        + ["ensemble"] * len(ensembles),
        nats_MN=np.concatenate([[[_nats(log_p_T) for log_p_T in log_p_N] for log_p_N in log_p_MN], mixed_MN]),
        documents=documents,
        encoded=encoded,
    )
    return summarise(
        table,
        dataset=dataset,
        settings={"seq_length": seq_length, "router": asdict(router), "evaluation": asdict(config)},
        training_tokens=dict(training_tokens or {}),
        num_samples=config.bootstrap_samples,
        seed=config.seed,
    )


def _mix(
    ensembles: Sequence[Ensemble],
    log_p_EN: Sequence[Sequence[Tensor]],
    documents: Sequence[HeldOutDocument],
    encoded: Sequence[EncodedDocument],
    route: Callable[[EncodedDocument], Tensor],
    language_expert: Mapping[str, int],
) -> NDArray[np.float64]:
    """Negative log-probability of every document under every ensemble, [ensembles, N]."""
    needs_router = any(ensemble.rule in TEXT_RULES for ensemble in ensembles)
    nats = np.empty((len(ensembles), len(documents)))
    for n, document in enumerate(documents):
        evidence = Evidence(
            log_p_ET=torch.stack([log_p_N[n] for log_p_N in log_p_EN]),
            router_log_w_TE=route(encoded[n]) if needs_router else None,
            language_expert=language_expert.get(document.lang) if document.lang is not None else None,
        )
        for row, ensemble in enumerate(ensembles):
            log_w_TE = ensemble_log_weights(ensemble, evidence)
            nats[row, n] = _nats(mixture_log_prob(evidence.log_p_ET, log_w_TE))
    return nats


def _route(
    document: EncodedDocument, *, tokenizer: Decoder, clusterer: Clusterer, router: RouterConfig
) -> Tensor:
    distance_TE = prefix_squared_distances(document.ids[:-1], tokenizer, clusterer)
    return router_log_weights(distance_TE, temperature=router.temperature, rule=router.rule)


def _nats(log_p_T: Tensor) -> float:
    # float64: a float32 sum over a long document loses the digits that two models differ in.
    return -float(log_p_T.double().sum())
