"""Before a run: whether what it reads is there, and what it would do."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xelm_nemo.config.compose import help_text, to_yaml
from xelm_nemo.errors import ConfigError
from xelm_nemo.stages.jobs import round_jobs
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

_LISTED_CLUSTERS = 4


def show_help(verb: str) -> None:
    """Print how to call the verb."""
    Console().print(help_text(verb), markup=False, highlight=False, soft_wrap=True)


def check_places(run: Run) -> None:
    """See that what the run reads is there, before anything is written.

    Raises:
        ConfigError: one line with every missing path and how to set it.
    """
    config, problems = run.config, []
    splits = ("train", "valid", "test") if "evaluate" in config.finish_with else ("train", "valid")
    missing = [str(run.split(split)) for split in splits if not run.split(split).is_dir()]
    if config.corpus.path and missing:
        problems.append(
            f"corpus.path={config.corpus.path!r} has no {' and no '.join(missing)}: set corpus.path=DIR to a "
            "folder of {train,valid}/<shard>/*.jsonl, or corpus=udhr to try the shipped text"
        )
    for key, path in {
        "seed_model.path": config.seed_model.path,
        "tokenizer.path": config.tokenizer.path,
    }.items():
        if path is not None and not Path(path).is_dir() and (problems or not _may_be_hub_id(path)):
            problems.append(f"{key}={path!r} is no folder here: set it to a Hugging Face folder or a hub id")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def show_plan(run: Run, stages: Sequence[Stage]) -> None:
    """Print the resolved configuration, the stages with their state, and the models to be trained."""
    console = Console()
    console.print(to_yaml(run.config).rstrip(), markup=False, highlight=False)
    console.print(f"\nrun folder: {run.folder}", highlight=False)
    table = Table("stage", "state")
    for stage in stages:
        table.add_row(stage.name, "up to date" if stage.is_current(run) else "to do")
    console.print(table)
    models = Table("model", "clusters", "iterations", "sequences a step", "tokens", "learning rate")
    for job in round_jobs(run):
        few = len(job.clusters) < _LISTED_CLUSTERS
        models.add_row(
            job.name,
            ",".join(map(str, job.clusters)) if few else f"all {len(job.clusters)}",
            str(job.train_iters),
            str(job.global_batch_size),
            f"{job.train_iters * job.tokens_per_iteration:,}",
            f"{job.optim.lr:g}",
        )
    console.print(models)


def _may_be_hub_id(path: str) -> bool:
    """`owner/name` or `name`, which only the hub can tell from a folder that is not there."""
    return not path.startswith((".", "/", "~")) and path.count("/") <= 1
