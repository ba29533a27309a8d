"""How a command runs on SLURM: submit what is missing, and follow it if asked to."""

import dataclasses
import functools
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console

from xelm_nemo import lock
from xelm_nemo.launch import slurm
from xelm_nemo.stages.claim import claimed
from xelm_nemo.stages.follow import Followed, follow
from xelm_nemo.stages.jobs import is_finished
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.submit import Plan, new_folder, plan, scripts, submit_all
from xelm_nemo.stages.training import progress_of

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 60.0  # for the last job to let go of the run folder


def run_on_slurm(run: Run, stages: Sequence[Stage], verb: str, only: Collection[str] = ()) -> None:
    """Submit what is missing, wait for it unless `wait=false`, and show what there is in the end.

    Args:
        run: the run.
        stages: those that the verb needs.
        verb: the command.
        only: names of models to train; empty: all.

    Raises:
        LaunchError: a job failed for good; the others have ended.
    """
    # Jobs may be submitted from one place and looked after from another.
    run = Run(dataclasses.replace(run.config, output=str(run.folder.resolve())))
    with claimed(run):
        folder = new_folder(run)
        planned = plan(run, stages, verb, folder / CONFIG, only)
        jobs = submit_all(run, planned, folder, slurm.queue())
    followed = _followed(planned, jobs)
    for one in followed:
        logger.info("%s: SLURM job %s", one.name, one.job)
    if not followed:
        logger.info("%s: up to date", verb)
    elif not run.config.wait:
        return Console().print(" ".join(str(one.job) for one in followed), soft_wrap=True)
    else:
        with progress_of(list(planned.models)) as progress:
            follow(followed, on_tick=progress.tick)
    with lock.hold(run.folder, patience_seconds=_PATIENCE_SECONDS):
        for stage in stages:
            if stage.is_current(run):
                stage.finish(run)


def show_scripts(run: Run, stages: Sequence[Stage], verb: str) -> None:
    """Print the batch scripts, as `dry_run=true` does."""
    planned = plan(run, stages, verb, run.folder.resolve() / CONFIG)
    for script in scripts(run, planned):
        Console().print(f"\n{script}", markup=False, highlight=False, soft_wrap=True)


def _followed(planned: Plan, jobs: dict[str, dict[str, str]]) -> list[Followed]:
    """The jobs of a plan to wait for, those of earlier submissions included."""

    def followed(name: str, folder: Path) -> Followed:
        return Followed(name, jobs.get(name, {}).get("job"), folder)

    steps = [step for steps in planned.before for step in steps]
    before = [followed(job.name, job.folder) for step in steps for job in step]
    models = [
        dataclasses.replace(followed(job.name, Path(job.folder)), is_done=functools.partial(is_finished, job))
        for job in planned.models
    ]
    closing = [planned.closing] if planned.closing else []
    return [*before, *models, *(followed(job.name, job.folder) for job in closing)]
