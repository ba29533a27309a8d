"""What tasks found, as values for result.json, and as tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from xelm_nemo.evaluation.config import family_of


@dataclasses.dataclass(frozen=True)
class TaskScore:
    """One metric of one model on one task.

    Attributes:
        task: such as "xnli_de".
        model: "dense", "ensemble", "ensemble top-1", ...
        metric: as lm-evaluation-harness calls it: "acc", or "acc_norm" by the length of the choices.
        by_seed: a share from 0 to 1 for each choice of demonstrations.
        stderr: standard error over the examples, the mean over the seeds; None where there is none.
        num_examples: how many were scored.
    """

    task: str
    model: str
    metric: str
    by_seed: list[float]
    stderr: float | None
    num_examples: int

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return fmean(self.by_seed)


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """The scores of all models on all tasks.

    Attributes:
        settings: what the figures depend on, JSON values.
        scores: by model, then by task.
    """

    settings: dict[str, Any]
    scores: list[TaskScore]

    @property
    def models(self) -> list[str]:
        """Names of the models, in order."""
        return list(dict.fromkeys(score.model for score in self.scores))

    def to_json(self) -> dict[str, Any]:
        """The value of `tasks` in result.json."""
        scores = [{"value": score.value} | dataclasses.asdict(score) for score in self.scores]
        return {"settings": self.settings, "scores": scores}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TaskResults":
        """What `to_json` gave."""
        names = [field.name for field in dataclasses.fields(TaskScore)]
        scores = [TaskScore(**{name: score[name] for name in names}) for score in value["scores"]]
        return cls(value["settings"], scores)


def task_rows(results: TaskResults, *, errors: bool = True) -> list[list[str]]:
    """A table: its heading, a row a task and metric, and the mean of each family with several tasks.

    Args:
        results: what to show.
        errors: whether with standard errors.
    """
    rows = [["task", "examples", "metric", *results.models]]
    by_row: dict[tuple[str, str], list[TaskScore]] = {}
    for score in results.scores:
        by_row.setdefault((score.task, score.metric), []).append(score)
    for (task, metric), scores in by_row.items():
        rows.append([task, f"{scores[0].num_examples:,}", metric, *_cells(scores, errors)])
    families: dict[tuple[str, str], list[list[TaskScore]]] = {}
    for (task, metric), scores in by_row.items():
        families.setdefault((str(family_of(task)), metric), []).append(scores)
    for (family, metric), members in families.items():
        if len(members) > 1:
            means = [fmean(score.value for score in of_model) for of_model in zip(*members, strict=True)]
            rows.append([f"{family}, mean", "", metric, *(f"{100 * mean:.1f}" for mean in means)])
    return rows


def tasks_note(results: TaskResults) -> str:
    """How these figures came about."""
    settings = results.settings
    shots, seeds = settings["num_fewshot"], settings["fewshot_seeds"]
    shown = f"demonstrations: {shots}, seeds {', '.join(map(str, seeds))}" if shots else "no demonstrations"
    sample = " The data is the package's sample, which measures nothing." if settings["is_sample"] else ""
    return f"Per cent; {shown}. {settings['mixing']} lm-evaluation-harness {settings['lm_eval']}.{sample}"


def print_tasks(results: TaskResults, console: Console | None = None) -> None:
    """Show the table, on standard output unless a console is given."""
    console = console or Console()
    header, *rows = task_rows(results, errors=False)  # a terminal is narrow
    table = Table(title="Tasks")
    table.add_column(header[0], no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(tasks_note(results), highlight=False)


def _cells(scores: Sequence[TaskScore], errors: bool) -> list[str]:
    return [
        f"{100 * score.value:.1f}"
        + (f" ± {100 * score.stderr:.1f}" if errors and score.stderr is not None else "")
        for score in scores
    ]
