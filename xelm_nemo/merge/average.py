"""Experts become one model of the same shape: a weighted average of their weights."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts, load_facts
from xelm_nemo.checkpoint.siblings import check_siblings
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ParallelConfig

if TYPE_CHECKING:
    from xelm_nemo.model.gpt import DecoderModel


def average_models(models: Mapping[str, Path], weights: Mapping[str, float], output: Path) -> None:
    """Write the average of models, theta = sum_e w_e theta_e, as a model folder.

    Sums are in float64 and one model at a time is in memory beside them, so it takes 8 bytes a weight and one
    model more. Models of weight 0 are not read.

    Args:
        models: name -> model folder.
        weights: name -> weight; they are divided by their sum.
        output: the model folder to write.

    Raises:
        ConfigError: the weights are not one for each model, or have no sum to divide by.
        CheckpointError: the models differ in vocabulary or shape.
        ArtifactError: a folder holds no finished model.
    """
    shares = normalised(models, weights)
    facts = {name: load_facts(models[name]) for name in shares}
    check_siblings(facts)
    recipe = Recipe("model", {"average": shares}, {name: models[name] for name in shares})
    with parallel.model_parallel(alone=True):
        from xelm_nemo.checkpoint import store

        model = _average([(models[name], share) for name, share in shares.items()])
        store.save_model(output, model, _facts(list(facts.values())), recipe)


def normalised(models: Mapping[str, Path], weights: Mapping[str, float]) -> dict[str, float]:
    """The weights above 0, in the order of the models, divided by their sum.

    Raises:
        ConfigError: they are not one for each model, or have no sum to divide by.
    """
    if models.keys() != weights.keys():
        raise ConfigError(
            f"average={dict(weights)} must have a weight for each of {sorted(models)}, and no other."
        )
    if not all(0 <= weight < math.inf for weight in weights.values()) or not sum(weights.values()) > 0:
        raise ConfigError(f"average={dict(weights)} must be numbers from 0 up, not all of them 0.")
    total = sum(weights.values())
    return {name: weights[name] / total for name in models if weights[name] > 0}


def language_weights(
    documents: Sequence[Mapping[str, int]], language: str, *, clusters: int | None = None
) -> list[float]:
    """Each cluster's share of a language's training documents, as X-ELM averages experts for a language.

    Args:
        documents: for each cluster, language -> number of its documents.
        language: the language.
        clusters: how many of the largest shares count, of equal ones the first; None: all.

    Returns:
        weights that sum to 1, one a cluster.

    Raises:
        ConfigError: no document is of this language, or `clusters` is below 1.
    """
    counts = [of_cluster.get(language, 0) for of_cluster in documents]
    if not any(counts):
        known = sorted({lang for of_cluster in documents for lang in of_cluster})
        raise ConfigError(
            f"average={language!r} is the language of no training document; use one of {known}."
        )
    if clusters is not None and clusters < 1:
        raise ConfigError(f"average_clusters={clusters} leaves no expert to average; use 1 or more.")
    kept = sorted(range(len(counts)), key=lambda cluster: -counts[cluster])[:clusters]
    total = sum(counts[cluster] for cluster in kept)
    return [count / total if cluster in kept else 0.0 for cluster, count in enumerate(counts)]


def _average(shares: Sequence[tuple[Path, float]]) -> "DecoderModel":
    """The last model, its weights replaced by the sums."""
    sums: dict[str, torch.Tensor] = {}
    for model, share in _loaded(shares):
        for name, weight in model.named_parameters():
            sums[name] = share * weight.data.double() + sums.get(name, 0.0)
    for name, weight in model.named_parameters():
        weight.data.copy_(sums.pop(name))
    return model


def _loaded(shares: Sequence[tuple[Path, float]]) -> "Iterator[tuple[DecoderModel, float]]":
    """Each model in turn, in the memory of the one before it."""
    from xelm_nemo.checkpoint import store

    model = store.load_model(shares[0][0], ParallelConfig())
    yield model, shares[0][1]
    for folder, share in shares[1:]:
        store.load_weights(model, folder)
        yield model, share


def _facts(of_models: Sequence[ModelFacts]) -> ModelFacts:
    """What is known of the average: the first model's sizes and dtype, and the tokens of all."""
    tokens = sum(facts.consumed_tokens for facts in of_models)
    iteration = max(facts.iteration for facts in of_models)
    changes = {"iteration": iteration, "consumed_tokens": tokens, "parent": None, "name": "average"}
    return dataclasses.replace(of_models[0], **changes)  # type: ignore[arg-type]
