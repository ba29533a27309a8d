"""Stage `prepare`: the shipped corpus, written out in the layout that every other stage reads."""

import logging
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.corpus import udhr
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

log = logging.getLogger(__name__)


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    """The corpus, if it is one of ours; a user's corpus is read where it is."""
    if run.config.corpus.path:
        return {}
    shipped = Path(str(files("xelm_nemo") / "data" / "udhr" / "udhr.jsonl"))
    held_out = {"test": list(udhr.TEST_ARTICLES), "valid": list(udhr.VALID_ARTICLES)}
    return {run.corpus: Recipe("corpus", {"builtin": "udhr"} | held_out, {"shipped": shipped})}


def _make(run: Run) -> None:
    for folder, recipe in _recipes(run).items():
        with artifacts.build(folder, recipe) as part:
            counts = udhr.write_corpus(part)
        log.info("prepare: %s", ", ".join(f"{count} documents in {split}" for split, count in counts.items()))


PREPARE = Stage("prepare", _recipes, _make)
