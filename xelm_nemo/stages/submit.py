"""A run as batch jobs: each stage one, all experts an array, in one graph of dependencies.

With rounds, the experts that begin from one parent are an array, which waits for that parent alone.

With `launch.slurm.file_jobs` above one, a stage that works file by file is three: a job that begins, an array
that shares the files, and a job that puts together what they made.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xelm_nemo.config.compose import to_yaml
from xelm_nemo.errors import RunFolderError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json, write_atomic, write_json
from xelm_nemo.launch import slurm
from xelm_nemo.launch.batch import Batch, submit, text
from xelm_nemo.launch.job import Job
from xelm_nemo.stages.jobs import launched, round_jobs, to_train
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.under_way import is_alive, left

LAUNCH = "launch"  # in the run folder: what was submitted
JOBS = "jobs.json"  # the newest job of each name
WORKER = "xelm_nemo.stages"


@dataclass(frozen=True)
class Plan:
    """What is to be submitted, in order.

    Attributes:
        before: stages, each after the one before it, and each in steps: jobs, which are an array if several.
        models: the models to train, after those stages, and each after the one that it begins from.
        closing: the stage that records the models and goes on from there; after all, however they end.
    """

    before: Sequence[Sequence[Sequence[Job]]]
    models: Sequence[TrainJob]
    closing: Job | None


def plan(run: Run, stages: Sequence[Stage], verb: str, config: Path, only: Collection[str] = ()) -> Plan:
    """What is missing or out of date, as jobs.

    Args:
        run: the run.
        stages: those that the verb needs, in order.
        verb: the command.
        config: the file that the jobs read their configuration from.
        only: names of models, which bring those that they begin from and that begin from them; empty: all.
    """
    names = [stage.name for stage in stages]
    first = next((k for k, stage in enumerate(stages) if not stage.is_current(run)), len(stages))
    missing = stages[first:]
    if "train" not in names:  # a verb before training; the shipped corpus is made along with the next stage
        chosen = [stage for stage in missing if stage.name != "prepare" or stage.name == verb]
        return Plan([_steps(run, stage, config) for stage in chosen], [], None)
    before = [stage for stage in missing if stage.name in ("cluster", "shard", "branch")]
    models = round_jobs(run)
    if not before:
        models = to_train(models)
    if only:
        models = _line(models, only)
    closing = _stage_job(run, verb, config) if missing else None
    return Plan([_steps(run, stage, config) for stage in before], models, closing)


def _line(jobs: Sequence[TrainJob], names: Collection[str]) -> list[TrainJob]:
    """The named ones of these jobs, in order, with their descendants and all ancestors among them."""
    made_by, chosen = {str(job.model_folder): job.name for job in jobs}, set(names)
    for job in jobs:  # an ancestor comes before its descendants
        if made_by.get(job.init) in chosen:
            chosen.add(job.name)
    for job in reversed(jobs):
        if job.name in chosen and job.init in made_by:
            chosen.add(made_by[job.init])
    return [job for job in jobs if job.name in chosen]


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
    before, kept = list[Sequence[Sequence[Job]]](), set[str]()
    for steps in planned.before:
        own, more = left(steps, jobs, queued)
        before, kept = [*before, own], kept | more
    models = [job for job in planned.models if job not in alive]
    fresh = dataclasses.replace(planned, before=before, models=models)
    if not planned.before:  # else their sizes may not be known yet, and the last stage before writes them
        for job in fresh.models:
            job.save()

    closing = planned.closing
    if closing and not fresh.models and is_alive(jobs.get(closing.name), closing.folder, queued):
        kept.add(closing.name)

    def send(batch: Batch) -> list[str]:
        new = [job for job in batch.jobs if job.name not in kept]
        if new:
            ids = submit(dataclasses.replace(batch, jobs=new), run.config.launch, folder)
            for job, name in zip(new, ids, strict=True):
                jobs[job.name] = {"job": name, "folder": str(job.folder), "submitted": time.time()}
            write_json(run.folder / LAUNCH / JOBS, jobs)
        return [jobs[job.name]["job"] for job in batch.jobs]

    _Chain(send, {job.name: jobs[job.name]["job"] for job in alive if job.name in jobs}).run(run, fresh)
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


def check_no_share_lives(run: Run) -> None:
    """See that no SLURM job works on a share of a stage's files, which takes the folder's lock for none.

    Raises:
        RunFolderError: some do.
    """
    shares = {name: record for name, record in recorded(run).items() if "-of-" in name}
    alive = [record["job"] for record in shares.values() if is_alive(record, Path(record["folder"]), None)]
    if alive:
        raise RunFolderError(
            f"SLURM jobs {', '.join(sorted(alive))} work on the files of {run.folder}; wait for them, or end "
            "them with `python -m xelm_nemo.cancel`."
        )


def _steps(run: Run, stage: Stage, config: Path) -> list[list[Job]]:
    shares = run.config.launch.slurm.file_jobs if stage.can_be_shared else 1
    last = [_stage_job(run, stage.name, config)]
    if shares == 1:
        return [last]
    begin = _stage_job(run, stage.name, config, "begin")
    return [[begin], [_stage_job(run, stage.name, config, f"{k}/{shares}") for k in range(shares)], last]


def _stage_job(run: Run, verb: str, config: Path, part: str = "") -> Job:
    """The job of a verb, or of a part of it, whose name is such as "cluster-begin" or "cluster-3-of-8"."""
    name = f"{verb}-{part.replace('/', '-of-')}" if part else verb
    folder = run.folder.resolve() / LAUNCH / name
    arguments = (verb, str(config), str(folder), *([part] if part else []))
    return Job(name, WORKER, folder, arguments=arguments)


@dataclass
class _Chain:
    """Hands over the batches of a plan one by one, each told which jobs to wait for."""

    send: Callable[[Batch], list[str]]
    training: Mapping[str, str] = field(
        default_factory=dict
    )  # jobs that train already: model -> SLURM's name

    def run(self, run: Run, planned: Plan) -> list[Batch]:
        name, batches, after = run.folder.resolve().name, list[Batch](), ""
        for step in (step for steps in planned.before for step in steps):
            title = step[0].name if len(step) == 1 else f"{step[0].arguments[0]}-files"
            batches.append(Batch(f"{name}-{title}", step, after, is_stage=True))
            after = "afterok:" + ":".join(dict.fromkeys(self.send(batches[-1])))
        training = dict(self.training)
        for parent, models in _by_parent(run, planned.models, training).items():
            title = f"{name}-after-{parent}" if parent else f"{name}-experts"
            batches.append(Batch(title, models, f"afterok:{training[parent]}" if parent else after))
            training |= dict(zip((job.name for job in models), self.send(batches[-1]), strict=True))
        if planned.closing:
            after = "afterany:" + ":".join(dict.fromkeys(training.values())) if training else after
            batches.append(Batch(f"{name}-{planned.closing.name}", [planned.closing], after, is_stage=True))
            self.send(batches[-1])
        return batches


def _by_parent(run: Run, models: Sequence[TrainJob], under_way: Collection[str]) -> dict[str, list[Job]]:
    """The models as jobs, by the one that they have to wait for, or ""; none waits for a later array."""
    jobs, known = dict[str, list[Job]](), round_jobs(run)
    coming = {*under_way, *(job.name for job in models)}
    for job in (launched(run, model, known) for model in models):
        jobs.setdefault(job.after if job.after in coming else "", []).append(job)
    return jobs
