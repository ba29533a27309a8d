"""Tasks of lm-evaluation-harness on a run's exported models, for stage `evaluate`."""

import dataclasses
import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xelm_nemo import artifacts
from xelm_nemo.errors import CorpusError
from xelm_nemo.evaluation.config import SAMPLE
from xelm_nemo.evaluation.task_scores import TaskResults
from xelm_nemo.evaluation.tasks import Task, data_folder, find_tasks
from xelm_nemo.files import fingerprint
from xelm_nemo.stages.generate import ensemble_set
from xelm_nemo.stages.run import Run

if TYPE_CHECKING:
    from xelm_nemo.evaluation.task_runs import TaskModel


def problems(run: Run) -> list[str]:
    """Why the tasks that are asked for cannot be run here."""
    if not run.config.tasks:
        return []
    found = []
    if importlib.util.find_spec("lm_eval") is None:
        found.append("tasks need lm_eval, which is not installed: run `pip install 'xelm_nemo[eval]'`")
    try:
        _find(run)
    except CorpusError as error:
        found.append(str(error).removesuffix("."))
    return found


def stamps(run: Run) -> list[dict[str, Any]]:
    """What the tasks' figures depend on, the models left aside."""
    return [task.stamp() for task in _find(run)]


def score_tasks(run: Run) -> TaskResults | None:
    """Run the tasks that are asked for on the dense baseline and on the ensemble at every top-k."""
    if not run.config.tasks:
        return None
    from xelm_nemo.evaluation.task_runs import run_tasks, seeds_of

    config, weighing = run.config.evaluation, _weighing(run)
    scores = run_tasks(_find(run), _models(run), config, run.folder / "task_scores")
    settings = {
        "num_fewshot": config.num_fewshot,
        "fewshot_seeds": seeds_of(config),
        "demo_lang": config.demo_lang,
        "max_docs": config.max_docs,
        "mixing": weighing,
        "is_sample": config.task_data == SAMPLE,
        "lm_eval": importlib.metadata.version("lm_eval"),
    }
    return TaskResults(settings, scores)


def _find(run: Run) -> list[Task]:
    config = run.config.evaluation
    folder = data_folder(str(config.task_data))
    files = {path: path.stat() for path in sorted(folder.glob("*/*.jsonl"))}
    now = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in files.items())
    return list(_checked(tuple(run.config.tasks), folder, config.num_fewshot, config.demo_lang, now))


@lru_cache(maxsize=1)
def _checked(
    names: tuple[str, ...], folder: Path, num_fewshot: int, demo_lang: str | None, _stamp: tuple[Any, ...]
) -> tuple[Task, ...]:
    """The tasks, whose rows are read once for as long as the files' stamp stays as it is."""
    return tuple(find_tasks(names, folder, num_fewshot=num_fewshot, demo_lang=demo_lang))


def _can_route(run: Run) -> bool:
    return run.config.clustering.method == "tfidf"


def _weighing(run: Run) -> str:
    """How the experts are weighed, in a sentence."""
    router, config = run.config.router, run.config.evaluation
    if not _can_route(run):
        averaged = "; their logits are averaged" if config.task_mixing == "logits" else ""
        return f"All experts weigh alike, for the clusterer places no texts{averaged}."
    temperature = router.temperature if config.task_temperature is None else config.task_temperature
    by_router = f"by the router (rule {router.rule}, temperature {temperature:g})"
    match config.task_mixing:
        case "sequence":
            once = f"Experts are mixed once an option, weighed by its prompt {by_router}"
            return f"{once}; top-k leaves out the rest."
        case "logits":
            return f"Experts' logits are averaged, weighed by the prompt {by_router}; top-k keeps k of them."
    return f"Experts are weighed anew at every token {by_router}; top-k keeps k of them."


def _models(run: Run) -> "list[TaskModel]":
    from xelm_nemo.evaluation.task_runs import TaskModel

    models = []
    if run.config.dense.enabled:
        dense = run.export / "dense"
        models.append(TaskModel("dense", dense, artifacts.check(dense, "export")["digest"]))
    whole = ensemble_set(run)
    experts = [run.export / f"expert{cluster}" for cluster in range(run.config.clustering.num_clusters)]
    digests = [artifacts.check(expert, "export")["digest"] for expert in experts]
    weights = [artifacts.check(whole, "ensemble")["digest"], *digests]
    router = dataclasses.asdict(run.config.router)
    for top_k in _top_ks(run, len(experts)):
        name = "ensemble" if top_k is None else f"ensemble top-{top_k}"
        models.append(TaskModel(name, whole, fingerprint([weights, router, top_k]), top_k))
    return models


def _top_ks(run: Run, num_experts: int) -> list[int | None]:
    """As in perplexity: all experts (None) first, and the same mixture once."""
    if not _can_route(run):
        return [None]
    asked = run.config.evaluation.top_k
    wanted = {None if top_k is None or top_k >= num_experts else top_k for top_k in asked}
    return sorted(wanted, key=lambda top_k: top_k or 0)
