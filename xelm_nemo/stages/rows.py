"""What is known of each model of a run, from its folder; SLURM is asked too where it has jobs."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts, lock
from xelm_nemo.artifacts import MANIFEST
from xelm_nemo.checkpoint.config import SeedModelConfig
from xelm_nemo.checkpoint.iterations import iteration_folders
from xelm_nemo.config.compose import from_yaml
from xelm_nemo.errors import ArtifactError, RunFolderError
from xelm_nemo.expert.job import CHECKPOINTS, JOB, TrainJob
from xelm_nemo.files import fingerprint
from xelm_nemo.launch import slurm
from xelm_nemo.launch.slurm import Queued
from xelm_nemo.launch.state import CANCELLED, GO_ON, LOST, STOPPED, State, read_state
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.rounds.config import RoundsConfig
from xelm_nemo.stages.jobs import all_rounds, baseline_jobs, expert_job, is_finished, seed_job
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.submit import recorded

UNDER_WAY = ("running", "starting", "pending", "silent")
_PATIENCE_SECONDS = 3.0  # for SLURM: the files say nearly as much


@dataclass(frozen=True)
class Row:
    """One model. Ages are in seconds; None where there is nothing to say.

    `state` is finished, running, starting, pending, waiting (not submitted), silent (it ought to have said
    something), stopped, failed, lost, cancelled, or out of date.
    """

    model: str
    job: str | None
    state: str
    step: int
    steps: int
    loss: float | None
    valid_loss: float | None
    tokens_per_second: float | None
    checkpoint_age: float | None
    node: str | None
    restarts: int
    ended: dict[str, int]
    reason: str


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        RunFolderError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise RunFolderError(f"{folder} holds no run; give output=DIR or the +experiment that started it.")
    return Run(from_yaml(folder / CONFIG))


def models(run: Run) -> list[TrainJob]:
    """Every model that the run trains: the seed model, the baselines, the experts of every round.

    Where the set that the run adds to is not to be found, as the run's own files have them.
    """
    try:
        return _planned(run)
    except ArtifactError:
        if run.config.rounds.base is None:
            raise
        return _as_started(run)


def _planned(run: Run) -> list[TrainJob]:
    jobs = [seed_job(run)] if run.config.seed_model.train_iters else []
    jobs += baseline_jobs(run)
    return jobs + [job for experts in all_rounds(run) for job in experts]


def _as_started(run: Run) -> list[TrainJob]:
    """The experts that the run adds to a set, without that set; one not begun has place and length alone."""
    config = dataclasses.replace(run.config, rounds=RoundsConfig(), seed_model=SeedModelConfig())
    jobs = [expert_job(Run(config), cluster) for cluster in run.config.own_clusters]
    return [
        dataclasses.replace(TrainJob.load(Path(job.folder)), folder=job.folder)
        if (Path(job.folder) / JOB).is_file()
        else job
        for job in jobs
    ]


def rows(run: Run) -> list[Row]:
    """A row for every model, as things are now."""
    records = recorded(run)
    queued = slurm.queue(_PATIENCE_SECONDS) if records else None
    return [row(job, records.get(job.name), queued) for job in models(run)]


def row(job: TrainJob, record: Any, queued: Mapping[str, Queued] | None) -> Row:
    """What is known of one model.

    Args:
        job: the model's.
        record: its submission, if it was submitted.
        queued: SLURM's queue; None when it is down, or has nothing to do with this.
    """
    folder = Path(job.folder)
    lines, state = read_metrics(folder / METRICS), read_state(folder)
    last = {key: value for line in lines for key, value in line.items()}  # of each key the newest
    here = queued.get(record["job"]) if queued and record else None
    word, reason = _fares(job, state, record, here, queue_answers=queued is not None)
    return Row(
        model=job.name,
        job=record["job"] if record else (state.job if state else None),
        state=word,
        step=max(last.get("iteration", 0), state.step if state else 0),
        steps=job.train_iters,
        loss=last.get("loss"),
        valid_loss=last.get("valid_loss"),
        tokens_per_second=last.get("tokens_per_second"),
        checkpoint_age=_age(folder / CHECKPOINTS),
        node=state.node if state else None,
        restarts=state.attempt - 1 if state else 0,
        ended=state.ended if state else {},
        reason=reason,
    )


def _fares(
    job: TrainJob, state: State | None, record: Any, here: Queued | None, *, queue_answers: bool
) -> tuple[str, str]:
    """The state of a model and the reason for it, from the surest source to the least sure."""
    if is_finished(job) or _was_finished(job):
        return "finished", ""
    if state and state.end is None and not state.is_silent:
        return "running", ""
    own = state if state and (not record or state.job == record["job"]) else None
    if record and record.get("cancelled") and not (own and own.end and own.end.time > record["cancelled"]):
        return CANCELLED, ""
    if here and here.is_active:
        return _waits(here, own)
    if own and own.end:
        return _ended(own)
    if own:  # silent, without an end
        if lock.is_held(Path(job.folder)) or (record and not queue_answers):
            return "silent", ""
        return (LOST, here.state if here else "") if record else (STOPPED, "")
    if record:
        return ("failed", here.state) if here else ("pending", "")
    if lock.is_held(Path(job.folder)):
        return "running", ""
    return ("out of date", "") if job.model_folder.is_dir() else ("waiting", "")


def _was_finished(job: TrainJob) -> bool:
    """Whether a model is whole whose init was of a set that has moved: by all else that the job was."""
    of_this_run = Path(job.folder).parents[2] in Path(job.init).parents
    if of_this_run or Path(job.init).exists() or not (job.model_folder / MANIFEST).is_file():
        return False
    recorded = artifacts.check(job.model_folder, "model")["recipe"]["settings"]
    return fingerprint(recorded) == fingerprint(dict(job.recipe().settings))


def _waits(here: Queued, own: State | None) -> tuple[str, str]:
    """A job that SLURM runs, or means to run, and that says nothing itself."""
    if here.state == "RUNNING":
        return ("silent", "") if own and own.end is None else ("starting", "")
    return "pending", here.reason if here.reason != "None" else ""


def _ended(own: State) -> tuple[str, str]:
    assert own.end
    said = own.end.message or own.end.reason
    if own.end.again:
        return "pending", f"{own.end.reason}; put back into the queue"
    return ("stopped" if own.end.reason in GO_ON else "failed"), said


def _age(checkpoints: Path) -> float | None:
    times = []
    for path in iteration_folders(checkpoints).values():
        with contextlib.suppress(FileNotFoundError):  # the oldest goes when a new one is there
            times.append(path.stat().st_mtime)
    return round(max(0.0, time.time() - max(times)), 1) if times else None
