"""Stage `export`: trained models in the formats of other libraries."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
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
        ConfigError: the format is not known, or needs a package that is not installed, or the output would
            replace the source.
        ArtifactError: there is no model, or no tokenizer for it, or the output holds other files.
    """
    _check_format(config.format)
    source, output = Path(config.source).resolve(), Path(config.output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise ConfigError(
            f"output={config.output!r} and source={config.source!r} overlap; give another output."
        )
    for name, model in _find_models(source).items():
        folder = output / name if name else output
        tokenizer = Path(config.tokenizer) if config.tokenizer else _find_tokenizer(model)
        _export(folder, _recipe(model, tokenizer, config.format))
        log.info("export: %s -> %s", model, folder)


def _check_format(name: str) -> None:
    if name not in _WRITERS:
        raise ConfigError(f"format={name!r} is not known; use one of {list(_WRITERS)}.")
    if name == "nemo" and importlib.util.find_spec("nemo") is None:
        raise ConfigError(
            "format=nemo needs NeMo, which is not installed; run `pip install -c constraints.txt -e .[nemo]`."
        )


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


def _recipe(model: Path, tokenizer: Path, form: str = "hf") -> Recipe:
    return Recipe("export", {"format": form}, {"model": model, "tokenizer": tokenizer})


def _export(folder: Path, recipe: Recipe) -> None:
    """Make one folder, from weights whose bytes are those that were written."""
    model, tokenizer = recipe.inputs["model"], recipe.inputs["tokenizer"]
    artifacts.verify(model)
    with artifacts.build(folder, recipe) as part:
        _WRITERS[recipe.settings["format"]](model, part, tokenizer)


def _write_hf(model: Path, folder: Path, tokenizer: Path) -> None:
    from xelm_nemo.checkpoint.hf import export_hf

    export_hf(model, folder, tokenizer=tokenizer, card=_card_rows(model))


def _write_nemo(model: Path, folder: Path, tokenizer: Path) -> None:
    from xelm_nemo.nemo.context import write_checkpoint

    write_checkpoint(model, folder, tokenizer=tokenizer)


# format -> what fills a folder with a model in it.
_WRITERS: dict[str, Callable[[Path, Path, Path], None]] = {"hf": _write_hf, "nemo": _write_nemo}


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
