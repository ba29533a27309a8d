"""One rank of a training job: alone in its folder, heard by those who watch, and stopped by signals."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from xelm_nemo import artifacts, lock
from xelm_nemo.errors import Stopped
from xelm_nemo.expert.going_back import forget_later, go_back
from xelm_nemo.expert.job import BEST, CHECKPOINTS, TrainJob
from xelm_nemo.expert.wandb_run import WANDB
from xelm_nemo.files import fingerprint, read_json, remove, write_json
from xelm_nemo.launch import slurm
from xelm_nemo.launch.signals import StopRequest
from xelm_nemo.launch.state import attempt
from xelm_nemo.log import METRICS

STAMP = "recipe.json"  # what a job's checkpoints were made from


def work(job: TrainJob, rank: int, stop: StopRequest) -> None:
    """Train the job, unless its model is finished: this may be a job that SLURM started twice.

    Raises:
        RunFolderError: another process works in the folder.
        Stopped: a signal asked for it.
    """
    if rank > 0:  # rank 0 keeps the others waiting, where ranks meet, until the folder is its own
        if not is_finished(job):
            with contextlib.suppress(Stopped):  # srun kills all ranks when one ends badly
                _train(job, stop)
        return
    folder = Path(job.folder)
    # Of two that SLURM takes for one job, the second waits: the first is ended by SLURM, or ends.
    patience = math.inf if slurm.inside() else 3.0
    with lock.hold(folder, patience_seconds=patience) as claim:
        if not is_finished(job):
            with attempt(folder, lambda: slurm.why_stopped(stop.signal)) as own:
                drop_stale(job)
                go_back(job)
                _train(job, stop, at_step=own.at_step, insist=claim.insist)
                forget_later(job)
        if not job.keep_optimizer:
            remove(folder / CHECKPOINTS)


def _train(job: TrainJob, stop: StopRequest, **ties: Callable[..., None]) -> None:
    from xelm_nemo.expert.loop import Watch, train  # torch and Megatron: the state says "alive" meanwhile

    train(job, Watch(lambda: bool(stop), **ties))


def is_finished(job: TrainJob) -> bool:
    """Whether the job's model is whole and made from what is there now."""
    return artifacts.is_current(job.model_folder, job.recipe())


def drop_stale(job: TrainJob) -> None:
    """Delete checkpoints that another recipe made, for they cannot be gone on from."""
    folder, stamp = Path(job.folder), job.recipe().stamp()
    if (folder / STAMP).is_file() and fingerprint(read_json(folder / STAMP)) != fingerprint(stamp):
        for stale in (CHECKPOINTS, BEST, METRICS, "tensorboard", WANDB):
            remove(folder / stale)
    write_json(folder / STAMP, stamp, only_if_changed=True)
