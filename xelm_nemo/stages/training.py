"""Train the models of a run on this machine, as many at once as its devices hold."""

from pathlib import Path

from xelm_nemo import device
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.memory import check_memory
from xelm_nemo.launch.local import run_jobs
from xelm_nemo.launch.progress import TrainingProgress
from xelm_nemo.log import METRICS
from xelm_nemo.stages.jobs import launched, to_train
from xelm_nemo.stages.room import check_room, first_init
from xelm_nemo.stages.run import Run


def train_all(run: Run, jobs: list[TrainJob]) -> None:
    """Train the jobs whose model is missing or stale, each after the one that it begins from."""
    todo = to_train(jobs)
    at_once = parallel_jobs(run)
    check_room(todo, at_once=at_once)
    for job in todo:
        check_memory(job, vocab_size=load_facts(first_init(job, todo)).vocab_size)
    for job in todo:
        job.save()
    with progress_of(todo) as progress:
        run_jobs(
            [launched(run, job, todo) for job in todo],
            max_parallel=at_once,
            gpus=device.count(),
            on_tick=progress.tick,
            stop_signals=run.config.launch.stop_signals,
        )


def progress_of(jobs: list[TrainJob]) -> TrainingProgress:
    """The screen that follows these jobs."""
    return TrainingProgress(
        {job.name: (Path(job.folder) / METRICS, job.train_iters, job.tokens_per_iteration) for job in jobs}
    )


def parallel_jobs(run: Run) -> int:
    """How many models train at once: what the devices hold, unless launch.max_parallel says otherwise.

    Raises:
        ConfigError: one model needs more GPUs than there are.
    """
    ranks, gpus = run.config.parallel.num_ranks, device.count()
    if gpus and ranks > gpus:
        raise ConfigError(
            f"parallel.*: one model takes {ranks} GPUs and this machine has {gpus}; lower its sizes."
        )
    return run.config.launch.max_parallel or max(1, (gpus or device.cores()) // ranks)
