"""The stages in their order, and how a command runs them."""

import logging
from collections.abc import Sequence

from xelm_nemo import log
from xelm_nemo.artifacts import MANIFEST
from xelm_nemo.config.check import check_sizes
from xelm_nemo.config.compose import compose, help_text
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.stages.branch import BRANCH
from xelm_nemo.stages.claim import claimed
from xelm_nemo.stages.cluster import CLUSTER
from xelm_nemo.stages.evaluate import EVALUATE
from xelm_nemo.stages.export import EXPORT
from xelm_nemo.stages.jobs import round_jobs
from xelm_nemo.stages.memory import check_gpus
from xelm_nemo.stages.plan import check_places, show_help, show_plan, wants_help
from xelm_nemo.stages.prepare import PREPARE
from xelm_nemo.stages.run import Run, settled
from xelm_nemo.stages.shard import SHARD
from xelm_nemo.stages.slurm import run_on_slurm, show_scripts
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.submit import check_no_share_lives
from xelm_nemo.stages.train import TRAIN

logger = logging.getLogger(__name__)

BEFORE = (PREPARE, CLUSTER, SHARD, BRANCH, TRAIN)
AFTER = (EVALUATE, EXPORT)


def stages_of(verb: str, config: RunConfig) -> list[Stage]:
    """The stages that a verb needs, in order: those before it, itself, and after `train` `finish_with`.

    A seed model from elsewhere that is not trained on needs none before it.
    """
    names = [stage.name for stage in BEFORE]
    # Tasks are run on the models that `export` writes.
    after = (EXPORT, EVALUATE) if config.tasks else AFTER
    wanted = {*config.finish_with} if verb == TRAIN.name else {verb}
    if config.tasks and EVALUATE.name in wanted:
        wanted.add(EXPORT.name)
    if verb == BRANCH.name and config.seed_model.source != "random" and not config.seed_model.train_iters:
        return [BRANCH]
    if verb in names:
        chosen = list(BEFORE[: names.index(verb) + 1])
        return chosen + [stage for stage in after if verb == "train" and stage.name in wanted]
    return [*BEFORE, *(stage for stage in after if stage.name in wanted)]


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run a verb: compose the configuration, then make what is missing or stale up to and with this stage."""
    log.set_up()
    if wants_help(arguments):
        return show_help(help_text(verb))
    config = settled(compose(arguments))
    run = Run(config)
    stages = stages_of(verb, config)
    if not config.dry_run:
        check_places(run, stages)
    check_sizes(run.sized)
    on_slurm = config.launch.name == "slurm"
    if config.dry_run:
        show_plan(run, stages)
        return show_scripts(run, stages, verb) if on_slurm else None
    if on_slurm:
        return run_on_slurm(run, stages, verb)
    if TRAIN in stages:
        check_gpus(run)
    with claimed(run):
        check_no_share_lives(run)
        make(run, stages)


def make(run: Run, stages: Sequence[Stage]) -> None:
    """Make what is missing or stale, in this process and its children."""
    for stage in stages:
        if stage.is_current(run):
            logger.info("%s: up to date", stage.name)
        else:
            logger.info("%s: started", stage.name)
            stage.make(run)
        stage.finish(run)
    # All sizes are known now, and a batch script may start the jobs; a conversion alone has no tokens.
    if stages[-1] is BRANCH and (run.tokens / MANIFEST).is_file():
        for job in round_jobs(run):
            job.save()
