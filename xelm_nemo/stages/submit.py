"""A run as batch jobs: each stage one, all experts of a round an array, in one graph of dependencies."""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.config.compose import to_yaml
from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json, write_atomic, write_json
from xelm_nemo.launch import slurm
from xelm_nemo.launch.batch import Batch, submit, text
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.state import read_state
from xelm_nemo.stages.jobs import launched, round_jobs
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.stage import Stage

LAUNCH = "launch"  # in the run folder: what was submitted
JOBS = "jobs.json"  # the newest job of each name
WORKER = "xelm_nemo.stages"


@dataclass(frozen=True)
class Plan:
    """What is to be submitted, in order.

    Attributes:
        before: stages, each after the one before it.
        models: the models to train, an array, after those stages.
        closing: the stage that records the models and goes on from there; after the array, however it ends.
    """

    before: Sequence[Job]
    models: Sequence[TrainJob]
    closing: Job | None


def plan(run: Run, stages: Sequence[Stage], verb: str, config: Path, only: Collection[str] = ()) -> Plan:
    """What is missing or out of date, as jobs.

    Args:
        run: the run.
        stages: those that the verb needs, in order.
        verb: the command.
        config: the file that the jobs read their configuration from.
        only: names of models; empty: all.
    """
    names = [stage.name for stage in stages]
    first = next((k for k, stage in enumerate(stages) if not stage.is_current(run)), len(stages))
    missing = names[first:]
    if "train" not in names:  # a verb before training; the shipped corpus is made along with the next stage
        chosen = [name for name in missing if name != "prepare" or name == verb]
        return Plan([_stage_job(run, name, config) for name in chosen], [], None)
    before = [name for name in missing if name in ("cluster", "shard", "branch")]
    models = [job for job in round_jobs(run) if not only or job.name in only]
    if not before:
        models = [job for job in models if not is_finished(job)]
    closing = _stage_job(run, verb, config) if missing else None
    return Plan([_stage_job(run, name, config) for name in before], models, closing)


def scripts(run: Run, planned: Plan) -> list[str]:
    """The batch scripts of a plan; where a job's number is not known yet, its name stands."""
    chain, folder = _Chain(lambda batch: [batch.name] * len(batch.jobs)), run.folder / LAUNCH
    return [text(batch, run.config.launch, folder) for batch in chain.run(run, planned)]


def submit_all(
    run: Run, planned: Plan, folder: Path, queued: dict[str, slurm.Queued] | None
) -> dict[str, Any]:
    """Submit a plan, but nothing whose job is still in the queue or alive.

    Args:
        run: the run.
        planned: what to submit.
        folder: keeps the scripts.
        queued: SLURM's queue.

    Returns:
        The newest job of each name, as `jobs.json` has it.
    """
    jobs = recorded(run)
    alive = [job for job in planned.models if is_alive(jobs.get(job.name), Path(job.folder), queued)]
    fresh = dataclasses.replace(planned, models=[job for job in planned.models if job not in alive])
    if not planned.before:  # else their sizes may not be known yet, and the last stage before writes them
        for job in fresh.models:
            job.save()

    stages = [*planned.before, *([planned.closing] if planned.closing and not fresh.models else [])]
    kept = {job.name for job in stages if is_alive(jobs.get(job.name), job.folder, queued)}

    def send(batch: Batch) -> list[str]:
        if batch.jobs[0].name in kept:
            return [jobs[batch.jobs[0].name]["job"]]
        ids = submit(batch, run.config.launch, folder)
        for job, name in zip(batch.jobs, ids, strict=True):
            jobs[job.name] = {"job": name, "folder": str(job.folder), "submitted": time.time()}
        write_json(run.folder / LAUNCH / JOBS, jobs)
        return ids

    _Chain(send, [jobs[job.name]["job"] for job in alive if job.name in jobs]).run(run, fresh)
    return jobs


def new_folder(run: Run) -> Path:
    """A folder for a submission, with the configuration that its jobs will read."""
    folder = run.folder.resolve() / LAUNCH / time.strftime("%Y%m%dT%H%M%S")
    write_atomic(folder / CONFIG, to_yaml(run.config))
    return folder


def recorded(run: Run) -> dict[str, Any]:
    """The newest job of each name; none before the first submission."""
    path = run.folder / LAUNCH / JOBS
    return dict(read_json(path)) if path.is_file() else {}


def is_alive(record: Any, folder: Path, queued: dict[str, slurm.Queued] | None) -> bool:
    """Whether a job runs or will run: SLURM says so or, when SLURM is down, the job's own state."""
    state = read_state(folder)
    if state and state.end is None and not state.is_silent:
        return True
    if record is None or queued is None:
        return False
    return record["job"] in queued and queued[record["job"]].is_active


def is_finished(job: TrainJob) -> bool:
    """Whether a model is whole and up to date; not while what it is made from is missing."""
    try:
        return artifacts.is_current(job.model_folder, job.recipe())
    except ArtifactError:
        return False


def _stage_job(run: Run, name: str, config: Path) -> Job:
    folder = run.folder.resolve() / LAUNCH / name
    return Job(name, WORKER, folder, arguments=(name, str(config), str(folder)))


@dataclass
class _Chain:
    """Hands over the batches of a plan one by one, each told which jobs to wait for."""

    send: Callable[[Batch], list[str]]
    training: Sequence[str] = ()  # jobs that train already

    def run(self, run: Run, planned: Plan) -> list[Batch]:
        name, batches, after = run.folder.resolve().name, list[Batch](), ""
        for job in planned.before:
            batches.append(Batch(f"{name}-{job.name}", [job], after, is_stage=True))
            after = "afterok:" + ":".join(self.send(batches[-1]))
        training = list(self.training)
        if planned.models:
            batches.append(Batch(f"{name}-experts", [launched(run, job) for job in planned.models], after))
            training += self.send(batches[-1])
        if planned.closing:
            after = "afterany:" + ":".join(dict.fromkeys(training)) if training else after
            batches.append(Batch(f"{name}-{planned.closing.name}", [planned.closing], after, is_stage=True))
            self.send(batches[-1])
        return batches
