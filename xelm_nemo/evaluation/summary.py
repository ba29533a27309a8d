"""Log-probabilities per document become scores by language and by cluster, intervals and a comparison.

Shape letters: M models and ensembles, N documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.evaluation.bootstrap import bootstrap_perplexities, interval95
from xelm_nemo.evaluation.documents import EncodedDocument, HeldOutDocument
from xelm_nemo.evaluation.result import Comparison, Cost, EvaluationResult, ModelResult, Score

Label = TypeVar("Label", str, int)


@dataclass(frozen=True)
class DocumentTable:
    """Every model's and ensemble's loss on every document.

    Attributes:
        names: of models and ensembles, M of them.
        kinds: "expert", "dense", "other" or "ensemble" of each.
        nats_MN: negative log-probability of each document, float64 [M, N].
        num_tokens_N: scored tokens of each document that count, int64 [N].
        num_bytes_N: UTF-8 bytes of each document, int64 [N].
        languages: language -> indices of its documents.
        clusters: cluster -> indices of its documents.
        num_truncated: documents whose end was cut off.
    """

    names: list[str]
    kinds: list[str]
    nats_MN: NDArray[np.float64]
    num_tokens_N: NDArray[np.int64]
    num_bytes_N: NDArray[np.int64]
    languages: dict[str, NDArray[np.int64]]
    clusters: dict[int, NDArray[np.int64]]
    num_truncated: int


def tabulate(
    *,
    names: list[str],
    kinds: list[str],
    nats_MN: NDArray[np.float64],
    documents: Sequence[HeldOutDocument],
    encoded: Sequence[EncodedDocument],
) -> DocumentTable:
    """Put losses and documents side by side."""
    return DocumentTable(
        names=names,
        kinds=kinds,
        nats_MN=nats_MN,
        num_tokens_N=np.array([document.num_counted for document in encoded]),
        num_bytes_N=np.array([document.num_bytes for document in encoded]),
        languages=_indices([document.lang for document in documents]),
        clusters=_indices([document.cluster for document in documents]),
        num_truncated=sum(document.is_truncated for document in encoded),
    )


def summarise(
    table: DocumentTable,
    *,
    dataset: str,
    settings: dict[str, Any],
    training_tokens: dict[str, int],
    missing_experts: list[str],
    num_left_out: int,
    costs: dict[str, Cost],
    num_samples: int,
    seed: int,
) -> EvaluationResult:
    """Add the table up, overall and by group.

    Args:
        table: every model's loss on every document.
        dataset: name of the split.
        settings: what to record with the result.
        training_tokens: model -> tokens it was trained on, as far as known.
        missing_experts: names of the experts that were left out.
        num_left_out: examples that were left out, having no target in their context.
        costs: model or ensemble -> what it takes to predict, as far as known.
        num_samples: resamplings of the documents behind each 95 % interval.
        seed: of the resampling.

    Returns:
        the result, headline first among the ensembles.
    """
    perplexity_MS = bootstrap_perplexities(
        table.nats_MN, table.num_tokens_N, num_samples=num_samples, seed=seed
    )
    return EvaluationResult(
        dataset=dataset,
        models=[_model_result(table, m, perplexity_MS[m]) for m in range(len(table.names))],
        comparison=_compare(table, perplexity_MS, training_tokens),
        documents=_count_documents(table),
        num_documents=len(table.num_tokens_N),
        num_truncated=table.num_truncated,
        settings=settings,
        training_tokens=training_tokens,
        missing_experts=missing_experts,
        num_left_out=num_left_out,
        costs=costs,
    )


def _model_result(table: DocumentTable, model: int, perplexity_S: NDArray[np.float64]) -> ModelResult:
    everything = np.arange(len(table.num_tokens_N))
    return ModelResult(
        name=table.names[model],
        kind=table.kinds[model],
        overall=_score(table, model, everything),
        interval=interval95(perplexity_S),
        by_language={lang: _score(table, model, chosen) for lang, chosen in table.languages.items()},
        by_cluster={cluster: _score(table, model, chosen) for cluster, chosen in table.clusters.items()},
    )


def _compare(
    table: DocumentTable, perplexity_MS: NDArray[np.float64], training_tokens: Mapping[str, int]
) -> Comparison:
    """The first ensemble against the dense model, else the best expert, else the best other ensemble."""
    ensemble = table.kinds.index("ensemble")
    total_M = table.nats_MN.sum(1)
    rivals = [m for kind in ("dense", "expert") for m, found in enumerate(table.kinds) if found == kind]
    if not rivals:
        rivals = [m for m in range(len(table.kinds)) if m != ensemble] or [ensemble]
    baseline = rivals[0] if "dense" in table.kinds else min(rivals, key=lambda m: total_M[m])
    return Comparison(
        ensemble=table.names[ensemble],
        baseline=table.names[baseline],
        ratio=float(np.exp((total_M[ensemble] - total_M[baseline]) / table.num_tokens_N.sum())),
        interval=interval95(perplexity_MS[ensemble] / perplexity_MS[baseline]),
        has_equal_tokens=_has_equal_tokens(table, table.names[baseline], training_tokens),
    )


def _count_documents(table: DocumentTable) -> dict[str, dict[int, int]]:
    return {
        lang: {cluster: len(np.intersect1d(of_lang, chosen)) for cluster, chosen in table.clusters.items()}
        for lang, of_lang in table.languages.items()
    }


def _indices(labels: Sequence[Label | None]) -> dict[Label, NDArray[np.int64]]:
    members: dict[Label, list[int]] = {}
    for n, label in enumerate(labels):
        if label is not None:
            members.setdefault(label, []).append(n)
    return {label: np.array(members[label]) for label in sorted(members)}


def _score(table: DocumentTable, model: int, chosen: NDArray[np.int64]) -> Score:
    return Score(
        nats=float(table.nats_MN[model, chosen].sum()),
        num_tokens=int(table.num_tokens_N[chosen].sum()),
        num_bytes=int(table.num_bytes_N[chosen].sum()),
    )


def _has_equal_tokens(table: DocumentTable, baseline: str, training_tokens: Mapping[str, int]) -> bool | None:
    experts = [name for name, kind in zip(table.names, table.kinds, strict=True) if kind == "expert"]
    if not experts or not {baseline, *experts} <= training_tokens.keys():
        return None
    return sum(training_tokens[name] for name in experts) == training_tokens[baseline]
