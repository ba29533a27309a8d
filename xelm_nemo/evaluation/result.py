"""What an evaluation found, as values that survive the way through result.json."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xelm_nemo.evaluation.task_scores import TaskResults
from xelm_nemo.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one model predicts one group of documents.

    Attributes:
        nats: negative log-probability of all scored tokens.
        num_tokens: number of scored tokens.
        num_bytes: UTF-8 bytes of the scored text.
    """

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that is past the floating-point range."""
        try:
            return math.exp(self.nats / self.num_tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; unlike perplexity, comparable between tokenizers. NaN without bytes."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model or an ensemble takes to predict.

    Attributes:
        flops_per_token: operations of a forward pass, at the context length.
        weight_bytes: of its weights, all of them in memory.
    """

    flops_per_token: float
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """The scores of one model or of one ensemble.

    Attributes:
        name: "expert3", "dense", "ensemble", "ensemble top-2", ...
        kind: "expert", "dense", "other" (a single model that is neither) or "ensemble".
        overall: score over all documents.
        interval: 95 % bootstrap interval of the overall perplexity.
        by_language: language -> score.
        by_cluster: cluster -> score.
    """

    name: str
    kind: str
    overall: Score
    interval: tuple[float, float]
    by_language: dict[str, Score]
    by_cluster: dict[int, Score]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The headline ensemble against its baseline.

    Attributes:
        ensemble: name of the ensemble.
        baseline: "dense"; without a dense model the best expert; without experts the best other ensemble, or,
            without another, the ensemble itself.
        ratio: perplexity of the ensemble over that of the baseline; below 1 the ensemble is better.
        interval: 95 % interval of the ratio, from resampling the same documents for both.
        has_equal_tokens: whether all experts together trained on as many tokens as the baseline; None if
            that is not known.
    """

    ensemble: str
    baseline: str
    ratio: float
    interval: tuple[float, float]
    has_equal_tokens: bool | None


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """An evaluation of an expert set on one split.

    Attributes:
        dataset: name of the split.
        models: experts in cluster order, then the dense model, others, then ensembles, the headline first.
        comparison: the headline.
        documents: language -> cluster -> number of documents.
        num_documents: all documents, those without a language or a cluster included.
        num_truncated: documents whose end was cut off.
        settings: what the figures depend on, JSON values.
        training_tokens: model -> tokens it was trained on, as far as known.
        missing_experts: experts that were not there and take no part.
        costs: model or ensemble -> what it takes to predict, as far as known.
        num_left_out: examples beside these that have nothing to score, for their source fills the context.
    """

    dataset: str
    models: list[ModelResult]
    comparison: Comparison
    documents: dict[str, dict[int, int]]
    num_documents: int
    num_truncated: int
    settings: dict[str, Any]
    training_tokens: dict[str, int]
    missing_experts: list[str] = dataclasses.field(default_factory=list)
    num_left_out: int = 0
    costs: dict[str, Cost] = dataclasses.field(default_factory=dict)

    def model(self, name: str) -> ModelResult:
        """The result of the model or ensemble of this name."""
        return next(model for model in self.models if model.name == name)

    def of_kind(self, kind: str) -> list[ModelResult]:
        """All results of one kind, in order."""
        return [model for model in self.models if model.kind == kind]

    @property
    def headline(self) -> ModelResult:
        """The ensemble that the verdict speaks of."""
        return self.model(self.comparison.ensemble)

    @property
    def languages(self) -> list[str]:
        """Languages that have a score, sorted."""
        return sorted(self.headline.by_language)

    @property
    def clusters(self) -> list[int]:
        """Clusters that have a score, sorted."""
        return sorted(self.headline.by_cluster)


def write_results(path: Path, results: Sequence[EvaluationResult], tasks: TaskResults | None = None) -> None:
    """Write result.json: upstream's three keys, everything about the first subset, then the other subsets.

    `dataset`, `result_ppl` (perplexity of the headline ensemble) and `result_prior` (always null) are
    what the evaluator of c-BTM and X-ELM writes. Further subsets are a list under `subsets`, each alike;
    what tasks gave is under `tasks`.
    """
    first, *others = [_to_json(result) for result in results]
    more = {"subsets": others} if others else {}
    write_json(path, first | more | ({"tasks": tasks.to_json()} if tasks else {}))


def read_results(path: Path) -> list[EvaluationResult]:
    """The results in a result.json that `write_results` wrote, a subset each.

    Raises:
        ArtifactError: the file is missing or not JSON.
    """
    value = read_json(path)
    return [_from_json(each) for each in (value, *value.get("subsets", []))]


def read_task_results(path: Path) -> TaskResults | None:
    """What tasks gave in the evaluation of a result.json, if any were run.

    Raises:
        ArtifactError: the file is missing or not JSON.
    """
    value = read_json(path).get("tasks")
    return TaskResults.from_json(value) if value else None


def _to_json(result: EvaluationResult) -> dict[str, Any]:
    upstream = {
        "dataset": result.dataset,
        "result_ppl": result.headline.overall.perplexity,
        "result_prior": None,
    }
    return upstream | dataclasses.asdict(result) | {"models": [_model_to_json(m) for m in result.models]}


def _from_json(value: Mapping[str, Any]) -> EvaluationResult:
    comparison = value["comparison"]
    return EvaluationResult(
        dataset=value["dataset"],
        models=[_model_from_json(model) for model in value["models"]],
        comparison=Comparison(**(comparison | {"interval": tuple(comparison["interval"])})),
        documents={
            lang: {int(cluster): count for cluster, count in counts.items()}
            for lang, counts in value["documents"].items()
        },
        num_documents=value["num_documents"],
        num_truncated=value["num_truncated"],
        settings=value["settings"],
        training_tokens=value["training_tokens"],
        missing_experts=value["missing_experts"],
        # Results from before have none.
        num_left_out=value.get("num_left_out", 0),
        costs={name: Cost(**cost) for name, cost in value.get("costs", {}).items()},
    )


def _model_to_json(model: ModelResult) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "overall": _score_to_json(model.overall) | {"interval": list(model.interval)},
        "by_language": {lang: _score_to_json(score) for lang, score in model.by_language.items()},
        "by_cluster": {str(cluster): _score_to_json(score) for cluster, score in model.by_cluster.items()},
    }


def _model_from_json(value: Mapping[str, Any]) -> ModelResult:
    low, high = value["overall"]["interval"]
    return ModelResult(
        name=value["name"],
        kind=value["kind"],
        overall=_score_from_json(value["overall"]),
        interval=(low, high),
        by_language={lang: _score_from_json(score) for lang, score in value["by_language"].items()},
        by_cluster={int(cluster): _score_from_json(score) for cluster, score in value["by_cluster"].items()},
    )


def _score_to_json(score: Score) -> dict[str, float]:
    return {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte} | dataclasses.asdict(score)


def _score_from_json(value: Mapping[str, Any]) -> Score:
    return Score(value["nats"], value["num_tokens"], value["num_bytes"])
