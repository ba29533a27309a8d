"""Stage `export`: trained models as Hugging Face folders."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.expert.job import MODEL
from xelm_nemo.files import read_json
from xelm_nemo.stages.jobs import finished_models
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.train import SET

log = logging.getLogger(__name__)


def export_source(config: ExportConfig) -> None:
    """Export one model into `output`, or each model of a folder into `output/<name>`.

    Raises:
        ConfigError: the format is not known, or the output would replace the source.
        ArtifactError: there is no model, or no tokenizer for it, or the output holds other files.
    """
    if config.format not in ("hf", "upstream"):
        raise ConfigError(f"format={config.format!r} is not known; use 'hf', or 'upstream' for a clusterer.")
    source, output = Path(config.source).resolve(), Path(config.output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise ConfigError(
            f"output={config.output!r} and source={config.source!r} overlap; give another output."
        )
    if config.format == "upstream":
        return _export_clusterer(source, output)
    for name, model in _find_models(source).items():
        folder = output / name if name else output
        tokenizer = Path(config.tokenizer) if config.tokenizer else _find_tokenizer(model)
        _export(folder, _recipe(model, tokenizer))
        log.info("export: %s -> %s", model, folder)


def _export_clusterer(source: Path, output: Path) -> None:
    """A tf-idf clusterer as the original programs' two pickles."""
    from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
    from xelm_nemo.clustering.upstream_writer import write_upstream

    artifacts.check(source, "clusterer")
    artifacts.verify(source)
    clusterer = Clusterer.load(source)
    if not isinstance(clusterer, TfidfClusterer) or clusterer.features.settings.analyzer != "word":
        raise ConfigError(
            f"source={str(source)!r} does not count words (it is of kind {clusterer.kind}), as the original "
            "programs do; cluster with clustering=tfidf."
        )
    features = clusterer.features
    with artifacts.build(output, Recipe("export", {"format": "upstream"}, {"clusterer": source})) as part:
        write_upstream(part, features.terms, features.idf, features.components, clusterer.centroids)
    log.info("export: %s -> %s", source, output)


def _find_models(source: Path) -> dict[str, Path]:
    """Model folders under their names; one that is the source itself has the name ""."""
    for folder in (source, source / MODEL):
        if (folder / artifacts.MANIFEST).is_file():
            artifacts.check(folder, "model")
            return {"": folder}
    models = {folder.parent.name: folder for folder in sorted(source.glob(f"*/{MODEL}"))}
    if not models:
        raise ArtifactError(
            f"source={str(source)!r} holds no finished model; give runs/<name>/experts/round0."
        )
    return models


def _find_tokenizer(model: Path) -> Path:
    """The tokenizer of the run that the model lies in, else the one that it was trained with."""
    from xelm_nemo.checkpoint.facts import load_facts

    beside = [parent / "tokenizer" for parent in model.parents]
    return next((folder for folder in beside if folder.is_dir()), Path(load_facts(model).tokenizer))


def _recipe(model: Path, tokenizer: Path) -> Recipe:
    return Recipe("export", {"format": "hf"}, {"model": model, "tokenizer": tokenizer})


def _export(folder: Path, recipe: Recipe) -> None:
    """Make one folder, from weights whose bytes are those that were written."""
    from xelm_nemo.checkpoint.hf import export_hf

    model, tokenizer = recipe.inputs["model"], recipe.inputs["tokenizer"]
    artifacts.verify(model)
    with artifacts.build(folder, recipe) as part:
        export_hf(model, part, tokenizer=tokenizer, card=_card_rows(model))


def _card_rows(model: Path) -> dict[str, Any]:
    """What the expert set that a model belongs to says of it."""
    path = model.parents[1] / SET
    experts = read_json(path)["experts"] if path.is_file() else []
    mine: dict[str, Any] = next((expert for expert in experts if expert["name"] == model.parent.name), {})
    return {key: mine[key] for key in ("cluster", "languages", "documents") if key in mine}


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    models = finished_models(run)
    return {run.export / name: _recipe(model, run.tokenizer) for name, model in models.items()}


def _make(run: Run) -> None:
    for folder, recipe in _recipes(run).items():
        if not artifacts.is_current(folder, recipe):
            _export(folder, recipe)


def _show(run: Run) -> None:
    log.info("export: %s", ", ".join(str(folder) for folder in _recipes(run)))


EXPORT = Stage("export", _recipes, _make, _show)
