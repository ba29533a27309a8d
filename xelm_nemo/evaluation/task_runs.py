"""Run tasks through lm-evaluation-harness, one model after another; what is known is not run again.

Imports lm_eval: only `evaluate tasks=[...]` imports this module.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from lm_eval.tasks import TaskManager

from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.harness import XelmLM
from xelm_nemo.evaluation.task_scores import TaskScore
from xelm_nemo.evaluation.tasks import Task
from xelm_nemo.files import fingerprint, read_json, scratch_folder, write_json

logger = logging.getLogger(__name__)
# Task, or its key -> {"examples": count, "metrics": {metric: [value, standard error or None]}}
Found = dict[str, Any]


@dataclass(frozen=True)
class TaskModel:
    """A model to run tasks on.

    Attributes:
        name: how reports call it.
        folder: an exported set, or one exported model.
        fingerprint: changes when the weights do, or what else shapes the mixture.
        experts_per_token: how many experts the router keeps; None keeps all.
    """

    name: str
    folder: Path
    fingerprint: str
    experts_per_token: int | None = None


def seeds_of(config: EvaluationConfig) -> list[int]:
    """The seeds that make a difference: without demonstrations there is nothing to draw."""
    return list(dict.fromkeys(config.fewshot_seeds)) if config.num_fewshot else config.fewshot_seeds[:1]


def run_tasks(
    tasks: Sequence[Task], models: Sequence[TaskModel], config: EvaluationConfig, folder: Path
) -> list[TaskScore]:
    """Every model on every task, at every seed.

    Args:
        tasks: what to run.
        models: what to run it on.
        config: demonstrations, seeds, and how many documents of each task.
        folder: keeps what was found, a file for each model and seed.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own defaults
    scores = []
    for model in models:
        by_seed = _run_seeds(tasks, model, config, folder)
        scores += [score for task in tasks for score in _scores(task.name, model.name, by_seed)]
    return scores


def _run_seeds(
    tasks: Sequence[Task], model: TaskModel, config: EvaluationConfig, folder: Path
) -> list[Found]:
    """What each seed gave; the model is opened for those alone that are not known."""
    lm, found = None, []
    for seed in seeds_of(config):
        path = folder / f"{model.name.replace(' ', '_')}-seed{seed}.json"
        how = [model.fingerprint, config.num_fewshot, seed, config.max_docs, lm_eval.__version__]
        how += [config.task_mixing, config.task_temperature]
        keys = {task.name: fingerprint([*how, task.stamp()]) for task in tasks}
        known: Found = read_json(path) if path.is_file() else {}
        if missing := [task for task in tasks if keys[task.name] not in known]:
            lm = lm or XelmLM(
                model.folder,
                batch_tokens=config.batch_tokens,
                experts_per_token=model.experts_per_token,
                temperature=config.task_temperature,
                mixing=config.task_mixing,
            )
            known |= {keys[name]: scores for name, scores in _run(missing, lm, config, seed).items()}
            write_json(path, known)
            logger.info("%d tasks with %s, seed %d", len(missing), model.name, seed)
        found.append({name: known[key] for name, key in keys.items()})
    return found


def _run(tasks: Sequence[Task], lm: XelmLM, config: EvaluationConfig, seed: int) -> Found:
    datasets.disable_progress_bars()
    with scratch_folder("tasks") as cache:
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=[task.config(cache) for task in tasks],
            num_fewshot=config.num_fewshot,
            limit=config.max_docs,
            log_samples=False,
            task_manager=TaskManager(include_defaults=False),
            fewshot_random_seed=seed,
        )
    return {
        task.name: {
            "examples": results["n-samples"][task.name]["effective"],
            "metrics": _metrics(results["results"][task.name]),
        }
        for task in tasks
    }


def _metrics(row: dict[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> value and standard error, from lm_eval's keys `<metric>[_stderr],<filter>`."""
    values = {key.split(",")[0]: value for key, value in row.items() if "," in key}
    return {
        name: [float(value), error if isinstance(error := values.get(f"{name}_stderr"), float) else None]
        for name, value in values.items()
        if not name.endswith("_stderr")
    }


def _scores(task: str, model: str, by_seed: Sequence[Found]) -> list[TaskScore]:
    scores = []
    for metric in by_seed[0][task]["metrics"]:
        values, errors = zip(*(found[task]["metrics"][metric] for found in by_seed), strict=True)
        stderr = None if None in errors else sum(errors) / len(errors)
        scores.append(TaskScore(task, model, metric, list(values), stderr, by_seed[0][task]["examples"]))
    return scores
