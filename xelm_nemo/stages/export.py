"""Stage `export`: trained models as other libraries keep them."""

import contextlib
import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.schema import ExportConfig, RunConfig
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.expert.job import MODEL
from xelm_nemo.files import read_json
from xelm_nemo.model.config import SparseConfig
from xelm_nemo.stages.jobs import finished_models
from xelm_nemo.stages.merging import export_average, export_upcycled
from xelm_nemo.stages.run import SET, Run
from xelm_nemo.stages.stage import Stage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Export:
    """One model to write in one format."""

    model: Path
    format: str = "hf"
    tokenizer: str | None = None  # folder or hub id
    dtype: str | None = None  # None: the model's

    def recipe(self) -> Recipe:
        """What the folder is made from."""
        settings = {"format": self.format} | ({"dtype": self.dtype} if self.dtype else {})
        if self.tokenizer is None:
            return Recipe("export", settings, {"model": self.model})
        if Path(self.tokenizer).is_dir():
            return Recipe("export", settings, {"model": self.model, "tokenizer": Path(self.tokenizer)})
        return Recipe("export", settings | {"tokenizer": self.tokenizer}, {"model": self.model})

    @contextlib.contextmanager
    def made(self, folder: Path) -> Iterator[None]:
        """Write the folder, which is there after the block, from weights whose bytes have not changed."""
        recipe = self.recipe()
        artifacts.verify(self.model)
        with artifacts.build(folder, recipe) as part:
            FORMATS[self.format](self, part)
            yield


def _to_hf(export: Export, folder: Path) -> None:
    from xelm_nemo.checkpoint.hf import export_hf

    card = _card_rows(export.model)
    export_hf(export.model, folder, tokenizer=export.tokenizer, card=card, dtype=export.dtype)


def _to_metaseq(export: Export, folder: Path) -> None:
    from xelm_nemo.checkpoint.metaseq_export import export_metaseq

    export_metaseq(export.model, folder, dtype=export.dtype)


def _to_nemo(export: Export, folder: Path) -> None:
    from xelm_nemo.nemo.context import write_checkpoint

    write_checkpoint(export.model, folder, tokenizer=export.tokenizer)


FORMATS: dict[str, Callable[[Export, Path], None]] = {
    "hf": _to_hf,
    "metaseq": _to_metaseq,
    "nemo": _to_nemo,
}
_WITH_TOKENIZER = ("hf", "nemo")
_CLUSTERER, _AVERAGE, _UPCYCLED = "upstream", "averaged", "upcycled"  # of a clusterer, and of a set


def export_source(config: ExportConfig) -> None:
    """Export one model into `output`, or each of a folder into `output/<name>`: all or, at an error, none.

    Raises:
        ConfigError: the format or the dtype is not known, or the output would replace the source.
        ArtifactError: there is no model, or the output holds other files.
        CheckpointError: a model is damaged, or cannot be written so.
    """
    _check_choices(config)
    source, output = Path(config.source).resolve(), Path(config.output).resolve()
    if source.is_relative_to(output) or output.is_relative_to(source):
        raise ConfigError(
            f"output={config.output!r} and source={config.source!r} overlap; give another output."
        )
    if config.format == _CLUSTERER:
        return _export_clusterer(source, output)
    if config.format == _AVERAGE:
        export_average(source, output, config.average, config.average_clusters)
        return log.info("export: the average of %s -> %s", source, output)
    if config.format == _UPCYCLED:
        export_upcycled(source, output, config.moe_layer_freq)
        return log.info("export: the experts of %s as one sparse model -> %s", source, output)
    models = _exportable(_find_models(source), config.format)
    with _unmade_if_unused(output), contextlib.ExitStack() as stack:
        for name, model in models.items():
            tokenizer = config.tokenizer
            if tokenizer is None and config.format in _WITH_TOKENIZER:
                tokenizer = _find_tokenizer(model)
            export = Export(model, config.format, tokenizer, config.dtype)
            stack.enter_context(export.made(output / name))
    for name, model in models.items():
        log.info("export: %s -> %s", model, output / name)


@contextlib.contextmanager
def _unmade_if_unused(folder: Path) -> Iterator[None]:
    """Remove a folder that was not there before, when an error leaves it empty."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _check_choices(config: ExportConfig) -> None:
    from xelm_nemo.checkpoint.lazy import DTYPES

    choices = {
        "format": (config.format, [*FORMATS, _CLUSTERER, _AVERAGE, _UPCYCLED]),
        "dtype": (config.dtype or "fp32", [*DTYPES]),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(f"{key}={value!r} is not known; use one of {known}.")
    for key in ("average", "average_clusters"):
        if (given := getattr(config, key)) is not None and config.format != _AVERAGE:
            raise ConfigError(f"{key}={given!r} is for format=averaged; leave it out.")
    if (freq := config.moe_layer_freq) is not None:
        if config.format != _UPCYCLED:
            raise ConfigError(f"moe_layer_freq={freq} is for format=upcycled; leave it out.")
        if freq < 1:
            raise ConfigError(
                f"moe_layer_freq={freq} is less than 1; 1 makes every layer sparse, 2 every second."
            )
    if config.format == "nemo" and importlib.util.find_spec("nemo") is None:
        raise ConfigError(
            "format=nemo needs NeMo, which is not installed; run `pip install -c constraints.txt -e .[nemo]`."
        )
    if config.format == "nemo" and config.dtype is not None:
        raise ConfigError("dtype is not for format=nemo, which keeps the weights as they are; leave it out.")


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
            f"source={str(source)!r} holds no finished model; give the last of runs/<name>/experts/round*."
        )
    return models


def _exportable(models: Mapping[str, Path], format: str) -> dict[str, Path]:
    """The models that other libraries have a form for, with a warning of the others.

    Raises:
        ConfigError: none is.
    """
    dense = {name: model for name, model in models.items() if _num_moe_experts(model) is None}
    for name, model in models.items():
        if name in dense:
            continue
        said = (
            f"format={format} has no model with {_num_moe_experts(model)} moe_experts in some layers; "
            f"{model} as it is can be evaluated and trained on (seed_model.source=model)"
        )
        if not dense:
            raise ConfigError(f"{said}, and dense models can be exported.")
        log.warning("export: %s is left out: %s", name, said)
    return dense


def _num_moe_experts(model: Path) -> int | None:
    """Of a sparse model; None of a dense one."""
    from xelm_nemo.checkpoint.facts import load_facts

    shape = load_facts(model).shape
    return shape.num_moe_experts if isinstance(shape, SparseConfig) else None


def _find_tokenizer(model: Path) -> str | None:
    """The tokenizer of the run that the model lies in, else the one that it was trained with."""
    from xelm_nemo.checkpoint.facts import load_facts

    for run in (Run(RunConfig(output=str(folder))) for folder in model.parents):
        is_of_run = any(model.is_relative_to(place) for place in (run.seed_model, run.experts))
        if is_of_run and (run.tokenizer / artifacts.MANIFEST).is_file():
            return str(run.tokenizer)
    recorded = load_facts(model).tokenizer
    try:
        load_tokenizer(recorded)
    except ArtifactError as error:
        log.warning("export: %s goes without a tokenizer, tokenizer=DIR adds one: %s", model, error)
        return None
    return recorded


def _card_rows(model: Path) -> dict[str, Any]:
    """What the expert set that a model belongs to says of it."""
    path = model.parents[1] / SET
    experts = read_json(path)["experts"] if path.is_file() else []
    mine: dict[str, Any] = next((expert for expert in experts if expert["name"] == model.parent.name), {})
    return {key: mine[key] for key in ("cluster", "languages", "documents") if key in mine}


def _exports(run: Run) -> Mapping[Path, Export]:
    return {
        run.export / name: Export(model, tokenizer=str(run.tokenizer))
        for name, model in finished_models(run).items()
        if _num_moe_experts(model) is None
    }


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {folder: export.recipe() for folder, export in _exports(run).items()}


def _make(run: Run) -> None:
    for folder, export in _exports(run).items():
        if not artifacts.is_current(folder, export.recipe()):
            with export.made(folder):
                log.info("export: %s -> %s", export.model, folder)


def _show(run: Run) -> None:
    folders = ", ".join(str(folder) for folder in _exports(run))
    log.info("export: %s", folders or "nothing, for other libraries have no such sparse models")


EXPORT = Stage("export", _recipes, _make, _show)
