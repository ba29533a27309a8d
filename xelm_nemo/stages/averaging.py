"""Experts averaged into one model: `python -m xelm_nemo.export source=SET format=averaged output=DIR`."""

from pathlib import Path

from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.files import read_json
from xelm_nemo.merge.average import average_models, language_weights
from xelm_nemo.stages.cluster import REPORT_JSON
from xelm_nemo.stages.run import SET

_EQUAL = "equal"


def export_average(source: Path, output: Path, average: str | None) -> None:
    """Write the average of a set's experts as a model folder.

    Args:
        source: the set's folder, `runs/<name>/experts/round0`.
        output: the model folder.
        average: None or "equal"; a language, whose documents weigh the experts as X-ELM does; or weights such
            as "expert0:2,expert3:1", experts that are not named having none.

    Raises:
        ConfigError: the weights cannot be found from what is given.
        ArtifactError: the folder is no set.
    """
    if not (source / SET).is_file():
        raise ArtifactError(f"source={str(source)!r} is no set of experts; give runs/<name>/experts/round0.")
    experts = read_json(source / SET)["experts"]
    models = {expert["name"]: source / expert["model"] for expert in experts}
    clusters = {expert["name"]: expert["cluster"] for expert in experts}
    if average in (None, _EQUAL):
        weights = dict.fromkeys(models, 1.0)
    elif ":" in str(average):
        weights = dict.fromkeys(models, 0.0) | _given(str(average))
    else:
        weights = _of_language(source, str(average), clusters)
    average_models(models, weights, output)


def _given(average: str) -> dict[str, float]:
    try:
        pairs = (part.split(":") for part in average.split(","))
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError:
        raise ConfigError(
            f"average={average!r} is no list of weights; write such as average='expert0:2,expert3:1'."
        ) from None


def _of_language(source: Path, language: str, clusters: dict[str, int]) -> dict[str, float]:
    reports = (folder / "clusters" / REPORT_JSON for folder in source.parents)
    report = next((path for path in reports if path.is_file()), None)
    if report is None:
        raise ConfigError(
            f"average={language!r}: {source} lies in no run folder, which would say how many documents of a "
            "language each expert has seen; give weights, such as average='expert0:2,expert3:1'."
        )
    documents = {row["cluster"]: row["languages"] for row in read_json(report)["clusters"]}
    shares = language_weights([documents[cluster] for cluster in clusters.values()], language)
    return dict(zip(clusters, shares, strict=True))
