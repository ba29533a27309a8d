"""Whether the disk holds the checkpoints of what is to be trained: said before the first step."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.iterations import iteration_folders
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import BEST, CHECKPOINTS, TrainJob
from xelm_nemo.files import size_of
from xelm_nemo.model.config import OPTIMIZER_BYTES, num_parameters

# Bytes a parameter: of the model, and of a checkpoint, which has float32 weights and Adam's two means too.
MODEL_BYTES = {"bf16": 2, "fp32": 4}
STATE_BYTES = {dtype: size + OPTIMIZER_BYTES for dtype, size in MODEL_BYTES.items()}


def check_room(jobs: Sequence[TrainJob], *, at_once: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        jobs: the models to train.
        at_once: how many train at the same time.

    Raises:
        ConfigError: says how much is missing, and what would need less.
    """
    if not jobs:
        return
    folder = Path(jobs[0].folder)
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    needed = needed_bytes(jobs, at_once=at_once)
    if needed <= free:
        return
    leaner = "checkpoint.keep_optimizer=false" if jobs[0].keep_optimizer else "a larger disk"
    raise ConfigError(
        f"output: training {len(jobs)} models writes {needed / 1e9:,.1f} GB of checkpoints and models, and "
        f"{folder} has {free / 1e9:,.1f} GB free; use {leaner}, checkpoint.keep_last=1, or another "
        "output=DIR."
    )


def needed_bytes(jobs: Sequence[TrainJob], *, at_once: int) -> int:
    """What the jobs will add to the disk at most, bytes."""
    sizes = []  # of each job: what it adds while it trains, and what stays of that
    for job in jobs:
        parameters = num_parameters(job.shape, load_facts(first_init(job, jobs)).vocab_size)
        state, model = parameters * STATE_BYTES[job.dtype], parameters * MODEL_BYTES[job.dtype]
        best = model if job.keep_best else 0
        # What a killed save has left is no state that will be replaced, but deleted by the next one.
        whole = (iteration_folders(Path(job.folder) / name).values() for name in (CHECKPOINTS, BEST))
        there = sum(map(size_of, itertools.chain.from_iterable(whole)))
        # A new state is whole before an old one goes, and so are the best weights.
        most = min(job.keep_last + 1, _num_saves(job)) * state + 2 * best + model - there
        kept = min(job.keep_last, _num_saves(job)) if job.keep_optimizer else 0
        stays = kept * state + best + model - there
        sizes.append((most, stays))
    # The largest are taken to be at their most at the same time, when the others have finished.
    extra = sorted((most - stays for most, stays in sizes), reverse=True)[:at_once]
    return sum(stays for _, stays in sizes) + sum(extra)


def first_init(job: TrainJob, jobs: Sequence[TrainJob]) -> Path:
    """The model folder that a job's line begins from, which is there before any of the jobs is trained."""
    made_by = {str(other.model_folder): other for other in jobs}
    while job.init in made_by:
        job = made_by[job.init]
    return Path(job.init)


def _num_saves(job: TrainJob) -> int:
    """How often a whole training saves its state: after the last step only if it stays."""
    before_the_last = (job.train_iters - 1) // job.save_interval
    return before_the_last + 1 if job.keep_optimizer else before_the_last
