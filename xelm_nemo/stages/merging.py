"""Experts made one model: `python -m xelm_nemo.export source=SET format=averaged|upcycled output=DIR`."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.files import read_json
from xelm_nemo.merge.average import average_models, language_weights
from xelm_nemo.merge.config import UpcycleConfig
from xelm_nemo.merge.upcycle import GateStart, upcycle_models
from xelm_nemo.model.sparse import divisors
from xelm_nemo.stages.cluster import REPORT_JSON
from xelm_nemo.stages.run import SET

_EQUAL = "equal"


def export_average(source: Path, output: Path, average: str | None, clusters: int | None = None) -> None:
    """Write the average of a set's experts as a model folder.

    Args:
        source: the set's folder, the last `runs/<name>/experts/round<r>`; an earlier round's does too.
        output: the model folder.
        average: None or "equal"; a language, whose documents weigh the experts as X-ELM does; or weights such
            as "expert0:2,expert3:1", experts that are not named having none.
        clusters: of a language, how many of the clusters that hold most of it count; None: all.

    Raises:
        ConfigError: the weights cannot be found from what is given.
        ArtifactError: the folder is no set.
    """
    experts = _experts(source)
    models = {expert["name"]: source / expert["model"] for expert in experts}
    clusters_of = {expert["name"]: expert.get("clusters", [expert["cluster"]]) for expert in experts}
    is_of_language = average not in (None, _EQUAL) and ":" not in str(average)
    if clusters is not None and not is_of_language:
        raise ConfigError(
            f"average_clusters={clusters} is for the average of a language, such as average=sw; leave it out."
        )
    if average in (None, _EQUAL):
        weights = dict.fromkeys(models, 1.0)
    elif is_of_language:
        weights = _of_language(source, str(average), clusters_of, clusters)
    else:
        weights = dict.fromkeys(models, 0.0) | _given(str(average))
    average_models(models, weights, output)


def export_upcycled(source: Path, output: Path, moe_layer_freq: int | None) -> None:
    """Write a set's experts as one sparse model folder: their feed-forward parts its moe_experts (BTX).

    Args:
        source: the set's folder, the last `runs/<name>/experts/round<r>`; an earlier round's does too.
        output: the model folder.
        moe_layer_freq: the last of every so many layers is sparse; None: every second one.

    Raises:
        ConfigError: the set has one expert alone, or its layers do not divide so.
        CheckpointError: the experts differ in vocabulary or shape.
        ArtifactError: the folder is no set.
    """
    models = {expert["name"]: source / expert["model"] for expert in _experts(source)}
    if len(models) < 2:
        raise ConfigError(f"source={str(source)!r} has {len(models)} expert; a sparse model takes 2 or more.")
    # No capacity: what a set has learned is not to be left out before the gates are trained.
    upcycle = UpcycleConfig(num_moe_experts=len(models), moe_expert_capacity_factor=None)
    if moe_layer_freq is not None:
        upcycle = dataclasses.replace(upcycle, moe_layer_freq=moe_layer_freq)
    layers, freq = load_facts(next(iter(models.values()))).shape.num_layers, upcycle.moe_layer_freq
    if layers % freq:
        raise ConfigError(
            f"moe_layer_freq={freq} does not divide the experts' {layers} layers; use one of "
            f"{divisors(layers)}."
        )
    settings = upcycle.shape_settings
    recipe = Recipe("model", {"upcycle": settings | {"gate_init": upcycle.gate_init}}, dict(models))
    upcycle_models(models, output, recipe, gate=GateStart(upcycle.gate_init), **settings)


def _experts(source: Path) -> list[dict[str, Any]]:
    """What the file of a set says of its experts."""
    if not (source / SET).is_file():
        raise ArtifactError(
            f"source={str(source)!r} is no set of experts; give the last of runs/<name>/experts/round*."
        )
    experts: list[dict[str, Any]] = read_json(source / SET)["experts"]
    return experts


def _given(average: str) -> dict[str, float]:
    try:
        pairs = (part.split(":") for part in average.split(","))
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        raise ConfigError(
            f"average={average!r} is no list of weights; write such as average='expert0:2,expert3:1'."
        ) from None


def _of_language(
    source: Path, language: str, clusters_of: Mapping[str, Sequence[int]], clusters: int | None
) -> dict[str, float]:
    reports = (folder / "clusters" / REPORT_JSON for folder in source.parents)
    report = next((path for path in reports if path.is_file()), None)
    if report is None:
        raise ConfigError(
            f"average={language!r}: {source} lies in no run folder, which would say how many documents of a "
            "language each expert has seen; give weights, such as average='expert0:2,expert3:1'."
        )
    documents = {row["cluster"]: row["languages"] for row in read_json(report)["clusters"]}
    of_experts = [
        sum((Counter(documents[cluster]) for cluster in own), Counter[str]()) for own in clusters_of.values()
    ]
    return dict(zip(clusters_of, language_weights(of_experts, language, clusters=clusters), strict=True))
