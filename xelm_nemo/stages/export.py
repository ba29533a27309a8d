"""Stage `export`: trained models as Hugging Face folders."""

import logging
from collections.abc import Mapping
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.expert.job import MODEL
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

log = logging.getLogger(__name__)


def export_source(config: ExportConfig) -> None:
    """Export one model into `output`, or each model of a folder into `output/<name>`.

    Raises:
        ConfigError: the format is not known.
        ArtifactError: there is no model, or no tokenizer for it.
    """
    if config.format != "hf":
        raise ConfigError(f"format={config.format!r} is not known; use 'hf'.")
    source, output = Path(config.source), Path(config.output)
    for name, model in _find_models(source).items():
        folder = output / name if name else output
        _export(model, Path(config.tokenizer) if config.tokenizer else _find_tokenizer(model), folder)
        log.info("export: %s -> %s", model, folder)


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

    beside = [parent / "tokenizer" for parent in model.resolve().parents]
    return next((folder for folder in beside if folder.is_dir()), Path(load_facts(model).tokenizer))


def _export(model: Path, tokenizer: Path, folder: Path) -> None:
    from xelm_nemo.checkpoint.hf import export_hf

    export_hf(model, folder, tokenizer=tokenizer)


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {
        run.export / name: Recipe("export", {"format": "hf"}, {"model": model, "tokenizer": run.tokenizer})
        for name, model in run.models().items()
    }


def _make(run: Run) -> None:
    for folder, recipe in _recipes(run).items():
        if not artifacts.is_current(folder, recipe):
            with artifacts.build(folder, recipe) as part:
                _export(recipe.inputs["model"], recipe.inputs["tokenizer"], part)


def _show(run: Run) -> None:
    log.info("export: %s", ", ".join(str(run.export / name) for name in run.models()))


EXPORT = Stage("export", _recipes, _make, _show)
