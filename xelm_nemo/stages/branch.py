"""Stage `branch`: the seed model, as a model folder that every expert starts from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.model.config import ParallelConfig
from xelm_nemo.stages.jobs import seed_job, train_all
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage


def _init_folder(run: Run) -> Path:
    """Where the weights before any training are; a seed model that is not trained here has only these."""
    return run.seed_model / "init" if run.config.seed_model.train_iters else run.seed_weights


def _init_recipe(run: Run) -> Recipe:
    seed_model = run.config.seed_model
    if seed_model.source == "random":
        shape, dtype = dataclasses.asdict(run.config.model), run.config.precision.params_dtype
        settings = {"shape": shape, "seed": seed_model.seed, "dtype": dtype}
        return Recipe("model", settings, {"tokenizer": run.tokenizer})
    source = Path(str(seed_model.path))
    return Recipe("model", {"path": str(source)}, {"source": source} if source.is_dir() else {})


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    recipes = {_init_folder(run): _init_recipe(run)}
    if run.config.seed_model.train_iters:
        recipes[run.seed_weights] = seed_job(run, _init_folder(run)).recipe()
    return recipes


def _make(run: Run) -> None:
    folder, recipe = _init_folder(run), _init_recipe(run)
    if not artifacts.is_current(folder, recipe):
        if run.config.seed_model.source == "random":
            _initialise(run, folder, recipe)
        else:
            from xelm_nemo.checkpoint.hf import import_hf

            import_hf(str(run.config.seed_model.path), folder, recipe)
    if run.config.seed_model.train_iters:
        train_all(run, [seed_job(run, folder)])


def _initialise(run: Run, folder: Path, recipe: Recipe) -> None:
    """Random weights, drawn by one process: the same for every layout."""
    from xelm_nemo import parallel
    from xelm_nemo.checkpoint import store
    from xelm_nemo.model.gpt import build_model

    vocab_size, dtype = len(load_tokenizer(run.tokenizer)), run.config.precision.params_dtype
    with parallel.model_parallel(seed=run.config.seed_model.seed, alone=True):
        shape = run.config.model
        model = build_model(shape, ParallelConfig(), vocab_size=vocab_size, dtype=store.DTYPES[dtype])
        facts = store.ModelFacts(shape, vocab_size, dtype, str(run.tokenizer), name="seed_model")
        store.save_model(folder, model, facts, recipe)


BRANCH = Stage("branch", _recipes, _make)
