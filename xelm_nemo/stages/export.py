"""Stage `export`: each model of the run as a Hugging Face folder."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, Stage

log = logging.getLogger(__name__)


def _products(run: Run) -> list[Product]:
    return [
        Product(partial(_output, model), partial(_recipe, model), partial(_fill, model))
        for model in run.models().values()
    ]


def _output(model: Path, run: Run) -> Path:
    return run.export / model.parent.name


def _recipe(model: Path, run: Run) -> Recipe:
    return Recipe("export", {"format": "hf"}, {"model": model, "tokenizer": run.tokenizer})


def _fill(model: Path, run: Run, folder: Path) -> None:
    from xelm_nemo.checkpoint.hf import export_hf

    export_hf(model, folder, tokenizer=run.tokenizer, card={"run": run.config.name})


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {product.folder(run): product.recipe(run) for product in _products(run)}


def _make(run: Run) -> None:
    for product in _products(run):
        product.make(run)
    log.info("export: %s", ", ".join(str(product.folder(run)) for product in _products(run)))


EXPORT = Stage("export", _recipes, _make)
