"""How a command runs on SLURM: submit what is missing, and follow it if asked to."""

import logging
from collections.abc import Collection, Sequence

from rich.console import Console

from xelm_nemo import lock
from xelm_nemo.launch import slurm
from xelm_nemo.stages.follow import Followed, follow
from xelm_nemo.stages.jobs import progress_of
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.submit import Plan, is_finished, new_folder, plan, scripts, submit_all

logger = logging.getLogger(__name__)


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
    with lock.hold(run.folder):
        run.claim()
        folder = new_folder(run)
        planned = plan(run, stages, verb, folder / CONFIG, only)
        jobs = submit_all(run, planned, folder, slurm.queue())
    names = [*(job.name for job in planned.before), *(job.name for job in planned.models)]
    names += [planned.closing.name] if planned.closing else []
    for name in names:
        logger.info("%s: SLURM job %s", name, jobs[name]["job"])
    if not names:
        logger.info("%s: up to date", verb)
    elif not run.config.wait:
        return Console().print(" ".join(jobs[name]["job"] for name in names), soft_wrap=True)
    else:
        _follow(run, planned, jobs)
    with lock.hold(run.folder):
        for stage in stages:
            if stage.is_current(run):
                stage.finish(run)


def show_scripts(run: Run, stages: Sequence[Stage], verb: str) -> None:
    """Print the batch scripts, as `dry_run=true` does."""
    planned = plan(run, stages, verb, run.folder.resolve() / CONFIG)
    for script in scripts(run, planned):
        Console().print(f"\n{script}", markup=False, highlight=False, soft_wrap=True)


def _follow(run: Run, planned: Plan, jobs: dict[str, dict[str, str]]) -> None:
    followed = [Followed(job.name, jobs[job.name]["job"], job.folder) for job in planned.before]
    followed += [
        Followed(job.name, jobs[job.name]["job"], run.experts / job.name, lambda job=job: is_finished(job))  # type: ignore[misc]
        for job in planned.models
    ]
    if planned.closing:
        followed.append(
            Followed(planned.closing.name, jobs[planned.closing.name]["job"], planned.closing.folder)
        )
    with progress_of(list(planned.models)) as progress:
        follow(followed, on_tick=progress.tick)
