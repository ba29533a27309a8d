"""Stage `branch`: the seed model, as a model folder that every expert starts from."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.config.check import check_sizes
from xelm_nemo.config.compose import compose
from xelm_nemo.corpus.tokenizer import check_special_ids, has_tokenizer, load_tokenizer
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.files import remove
from xelm_nemo.merge.upcycle import GateStart, upcycle_models
from xelm_nemo.model.config import ParallelConfig, recorded_settings
from xelm_nemo.stages.jobs import seed_job
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.training import train_all

log = logging.getLogger(__name__)


def _init_recipe(run: Run) -> Recipe:
    seed_model = run.config.seed_model
    if seed_model.source == "random":
        shape, dtype = recorded_settings(run.config.model), run.config.precision.params_dtype
        settings = {"shape": shape, "seed": seed_model.seed, "dtype": dtype}
        if seed_model.vocab_size is not None:  # unsaid, as in all models made before there was a choice
            settings["vocab_size"] = seed_model.vocab_size
        return Recipe("model", settings, {"tokenizer": run.tokenizer})
    source, tokenizer = Path(str(seed_model.path)), run.config.tokenizer.path
    inputs = {"source": source} if source.exists() else {}
    return Recipe("model", {"path": str(source)} | ({"tokenizer": tokenizer} if tokenizer else {}), inputs)


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    """The seed model; none for experts that begin from those of a finished set."""
    if run.base is not None:
        return {}
    recipes = {run.seed_init: _init_recipe(run)}
    if run.config.seed_model.train_iters:
        recipes[run.seed_weights] = seed_job(run).recipe()
    if run.config.upcycle.enabled:
        recipes[run.upcycled_init] = _upcycle_recipe(run)
    return recipes


def _upcycle_recipe(run: Run) -> Recipe:
    upcycle = run.config.upcycle
    gate = {"gate_init": upcycle.gate_init, "seed": run.config.seed_model.seed}
    return Recipe("model", {"upcycle": upcycle.shape_settings | gate}, {"seed_model": run.seed_weights})


def _make(run: Run) -> None:
    if run.base is not None:
        return
    folder, recipe = run.seed_init, _init_recipe(run)
    if not artifacts.is_current(folder, recipe):
        if run.config.seed_model.source == "random":
            _initialise(run, folder, recipe)
        else:
            _import(run, folder, recipe)
    if run.config.seed_model.train_iters:
        train_all(run, [seed_job(run)])
    if run.config.upcycle.enabled:
        _upcycle(run)


def _upcycle(run: Run) -> None:
    """The seed model with moe_experts, from which the sparse baseline is trained."""
    upcycle, recipe = run.config.upcycle, _upcycle_recipe(run)
    if not artifacts.is_current(run.upcycled_init, recipe):
        gate = GateStart(upcycle.gate_init, run.config.seed_model.seed)
        models = {"seed_model": run.seed_weights}
        upcycle_models(models, run.upcycled_init, recipe, gate=gate, **upcycle.shape_settings)


def _import(run: Run, folder: Path, recipe: Recipe) -> None:
    """A model from elsewhere, whose own sizes count from here on."""
    from xelm_nemo.checkpoint.hf import import_hf, resolve_source
    from xelm_nemo.checkpoint.metaseq import import_metaseq
    from xelm_nemo.checkpoint.model_folder import copy_model
    from xelm_nemo.checkpoint.nemo import import_nemo
    from xelm_nemo.checkpoint.nemo_context import read_context

    path, own = str(run.config.seed_model.path), run.config.tokenizer.path
    if run.config.seed_model.source == "model":
        own = own or load_facts(Path(path)).tokenizer
        num_tokens = _check_tokenizer(own, Path(path))
        copy_model(Path(path), folder, recipe, tokenizer=own)
    elif run.config.seed_model.source == "metaseq":
        num_tokens = _check_tokenizer(own, Path(path))
        import_metaseq(Path(path), folder, recipe, tokenizer=str(own))
    elif run.config.seed_model.source == "nemo":
        num_tokens = _check_tokenizer(own, Path(read_context(Path(path)).tokenizer or path))
        import_nemo(Path(path), folder, recipe, tokenizer=own)
    else:
        num_tokens = _check_tokenizer(own, resolve_source(path))
        import_hf(path, folder, recipe, tokenizer=own)
    _check_vocabulary(folder, own or path, num_tokens)
    check_sizes(run.sized)
    configs = (run.config, run.sized, compose([]))
    wanted, found, unset = (dataclasses.asdict(config.model) for config in configs)
    ignored = [
        f"model.{key}={value!r}" for key, value in wanted.items() if value not in (found[key], unset[key])
    ]
    if ignored:
        log.warning("branch: %s is not of the seed model, whose own sizes count", ", ".join(ignored))


def _check_vocabulary(folder: Path, tokenizer: str, num_tokens: int) -> None:
    vocab_size = load_facts(folder).vocab_size
    if num_tokens > vocab_size:
        remove(folder)
        raise ArtifactError(
            f"{tokenizer} has {num_tokens} tokens and the model has weights for {vocab_size}; set "
            "tokenizer.path=DIR to the model's own tokenizer."
        )


def _check_tokenizer(own: str | None, model: Path) -> int:
    """See that the tokenizer is one of the architecture's; a seed model converts without any, too.

    Returns:
        How many tokens it has; 0 without one.

    Raises:
        ArtifactError: its special tokens have other ids, or tokenizer.path has none.
    """
    if own is None and not has_tokenizer(model):
        log.warning("branch: %s has no tokenizer; tokenizer.path=DIR gives it one", model)
        return 0
    tokenizer = load_tokenizer(own or model)
    check_special_ids(tokenizer, own or model)
    return len(tokenizer)


def _initialise(run: Run, folder: Path, recipe: Recipe) -> None:
    """Random weights, drawn by one process: the same for every layout."""
    from xelm_nemo import parallel
    from xelm_nemo.checkpoint import store
    from xelm_nemo.checkpoint.facts import ModelFacts
    from xelm_nemo.checkpoint.lazy import DTYPES
    from xelm_nemo.model.gpt import build_model

    vocab_size, dtype = _vocab_size(run), run.config.precision.params_dtype
    with parallel.model_parallel(seed=run.config.seed_model.seed, alone=True):
        shape = run.config.model
        model = build_model(shape, ParallelConfig(), vocab_size=vocab_size, dtype=DTYPES[dtype])
        facts = ModelFacts(shape, vocab_size, dtype, str(run.tokenizer), name="seed_model")
        store.save_model(folder, model, facts, recipe)


def _vocab_size(run: Run) -> int:
    """Words of a random seed model: as many as it is to have, and the tokenizer's at least."""
    ids, wanted = len(load_tokenizer(run.tokenizer)), run.config.seed_model.vocab_size
    if wanted is not None and wanted < ids:
        raise ConfigError(
            f"seed_model.vocab_size={wanted} is less than the {ids} ids of {run.tokenizer}; use at least "
            f"{ids}, or null."
        )
    return wanted or ids


BRANCH = Stage("branch", _recipes, _make)
