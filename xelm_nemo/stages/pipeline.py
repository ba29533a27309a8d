"""The stages in their order, and how a command runs them."""

import logging
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from xelm_nemo import lock, log
from xelm_nemo.config.compose import compose, to_yaml
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.stages.branch import BRANCH
from xelm_nemo.stages.cluster import CLUSTER
from xelm_nemo.stages.evaluate import EVALUATE
from xelm_nemo.stages.export import EXPORT
from xelm_nemo.stages.prepare import PREPARE
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.shard import SHARD
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.train import TRAIN

logger = logging.getLogger(__name__)

BEFORE = (PREPARE, CLUSTER, SHARD, BRANCH, TRAIN)
AFTER = (EVALUATE, EXPORT)


def stages_of(verb: str, config: RunConfig) -> list[Stage]:
    """The stages that a verb needs, in order: those before it, itself, and after `train` those of `finish_with`."""
    names = [stage.name for stage in BEFORE]
    if verb in names:
        chosen = list(BEFORE[: names.index(verb) + 1])
        return chosen + [stage for stage in AFTER if verb == "train" and stage.name in config.finish_with]
    return [*BEFORE, *(stage for stage in AFTER if stage.name == verb)]


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run a verb: compose the configuration, then make what is missing or stale up to and with this stage."""
    log.set_up()
    config = compose(arguments)
    run = Run(config)
    stages = stages_of(verb, config)
    if config.dry_run:
        show_plan(run, stages)
        return
    check_places(config)
    with lock.hold(run.folder):
        run.claim()
        for stage in stages:
            if stage.is_current(run):
                logger.info("%s: up to date", stage.name)
            else:
                logger.info("%s: started", stage.name)
                stage.make(run)
            stage.report(run)


def check_places(config: RunConfig) -> None:
    """See that what the run reads is there, before anything is written.

    Raises:
        ConfigError: one line with every missing path and how to set it.
    """
    problems = []
    corpus = config.corpus
    if corpus.path:
        for key in ("train_split", "valid_split"):
            folder = Run(config).corpus / str(getattr(corpus, key))
            if not folder.is_dir():
                problems.append(f"{folder} is no folder: set corpus.path=DIR that has it, or corpus=udhr to try")
    for key, path in (("seed_model.path", config.seed_model.path), ("tokenizer.path", config.tokenizer.path)):
        looks_like_path = path is not None and (path.startswith((".", "/")) or path.count("/") > 1)
        if looks_like_path and not Run(config).folder.joinpath(str(path)).is_dir():
            problems.append(f"{key}={path!r} is no folder: set it to a Hugging Face folder or a hub id")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def show_plan(run: Run, stages: Sequence[Stage]) -> None:
    """Print the resolved configuration, the stages with their state, and the models to be trained."""
    from xelm_nemo.stages.jobs import expert_jobs

    console = Console()
    console.print(to_yaml(run.config).rstrip(), markup=False, highlight=False)
    console.print(f"\nrun folder: {run.folder}", highlight=False)
    table = Table("stage", "state")
    for stage in stages:
        table.add_row(stage.name, "up to date" if stage.is_current(run) else "to do")
    console.print(table)
    jobs = Table("model", "clusters", "iterations", "sequences a step", "tokens", "learning rate")
    for job in expert_jobs(run):
        clusters = ",".join(map(str, job.clusters)) if len(job.clusters) < 4 else f"all {len(job.clusters)}"
        tokens = f"{job.train_iters * job.tokens_per_iteration:,}"
        jobs.add_row(job.name, clusters, str(job.train_iters), str(job.global_batch_size), tokens, f"{job.optim.lr:g}")
    console.print(jobs)
