"""The models of a run as training jobs: the seed model, the experts, and the dense baseline."""

import dataclasses
from pathlib import Path

from xelm_nemo import artifacts, device
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.memory import check_memory
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.local import run_jobs
from xelm_nemo.launch.progress import TrainingProgress
from xelm_nemo.log import METRICS
from xelm_nemo.model.config import ParallelConfig, SparseConfig
from xelm_nemo.stages.room import check_room
from xelm_nemo.stages.run import Run

WORKER = "xelm_nemo.expert"
UPCYCLED = "upcycled"  # the sparse baseline's name


def seed_job(run: Run) -> TrainJob:
    """The seed model, trained on all clusters with as many sequences a step as all experts together."""
    config, seed_model = run.config, run.config.seed_model
    return dataclasses.replace(
        expert_job(run, 0),
        name="seed_model",
        folder=str(run.seed_model),
        init=str(run.seed_init),
        clusters=list(range(config.clustering.num_clusters)),
        optim=_with_rate(config.optim, seed_model.lr),
        train_iters=seed_model.train_iters,
        global_batch_size=config.training.global_batch_size,
        seed=seed_model.seed,
        resume_at=None,  # that is for the experts and the dense model
        threads=seed_model.threads,
    )


def dense_job(run: Run) -> TrainJob:
    """The dense baseline: all clusters, and as many tokens as all experts together."""
    config = run.config
    return dataclasses.replace(
        expert_job(run, 0),
        name="dense",
        folder=str(run.experts / "dense"),
        clusters=list(range(config.clustering.num_clusters)),
        optim=_with_rate(config.optim, config.dense.lr),
        train_iters=config.dense.train_iters or config.training.train_iters,
        global_batch_size=config.dense_batch_size,
    )


def upcycled_job(run: Run) -> TrainJob:
    """The sparse baseline: all clusters, and as many tokens as all experts together."""
    config = run.sized
    return dataclasses.replace(
        expert_job(run, 0),
        name=UPCYCLED,
        folder=str(run.experts / UPCYCLED),
        init=str(run.upcycled_init),
        clusters=list(range(config.clustering.num_clusters)),
        shape=config.upcycled_shape,
        parallel=config.parallel,
        optim=_with_rate(config.optim, config.upcycle.lr),
        train_iters=config.upcycle.train_iters or config.training.train_iters,
        global_batch_size=config.upcycle_batch_size,
    )


def baseline_jobs(run: Run) -> list[TrainJob]:
    """The dense and the sparse baseline, if they are asked for."""
    dense = [dense_job(run)] if run.config.dense.enabled else []
    return [*dense, upcycled_job(run)] if run.config.upcycle.enabled else dense


def expert_job(run: Run, cluster: int) -> TrainJob:
    """The expert of one cluster."""
    config, training = run.sized, run.config.training
    return TrainJob(
        name=f"expert{cluster}",
        folder=str(run.experts / f"expert{cluster}"),
        init=str(run.seed_weights),
        tokens=str(run.tokens),
        tokenizer=str(run.tokenizer),
        clusters=[cluster],
        shape=config.model,
        parallel=_layout(config),
        optim=config.optim,
        dtype=run.config.precision.params_dtype,
        fp8=run.config.precision.fp8,
        train_iters=training.train_iters,
        global_batch_size=config.expert_batch_size,
        micro_batch_size=training.micro_batch_size,
        seq_length=config.seq_length,
        document_mask=training.document_mask,
        seed=training.seed,
        log_interval=training.log_interval,
        save_interval=training.save_interval,
        eval_interval=training.eval_interval,
        eval_sequences=training.eval_sequences,
        skip_bad_steps=training.skip_bad_steps,
        profile_iters=training.profile_iters or [],
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        resume_at=config.checkpoint.resume_at,
        keep_optimizer=config.checkpoint.keep_optimizer,
        deterministic=training.deterministic,
        cuda_graphs=training.cuda_graphs,
        threads=config.launch.threads,
        step_timeout=config.launch.step_timeout,
        stop_signals=config.launch.stop_signals,
    )


def round_jobs(run: Run) -> list[TrainJob]:
    """The experts to train now and, first because they take longest, the baselines if there are any."""
    return [*baseline_jobs(run), *(expert_job(run, cluster) for cluster in run.config.train_clusters)]


def finished_models(run: Run) -> dict[str, Path]:
    """The model folders of the experts in cluster order, then of the baselines, by name.

    Raises:
        ArtifactError: one of them is missing, or was made from other clusters, tokens or settings.
    """
    jobs = [expert_job(run, cluster) for cluster in range(run.config.clustering.num_clusters)]
    jobs += baseline_jobs(run)
    missing = [job.name for job in jobs if not artifacts.is_current(job.model_folder, job.recipe())]
    if missing:
        raise ArtifactError(
            f"{run.experts} has no up-to-date {', '.join(missing)}; run `python -m xelm_nemo.train` with "
            "training.train_clusters=null first."
        )
    return {job.name: job.model_folder for job in jobs}


def train_all(run: Run, jobs: list[TrainJob]) -> None:
    """Train the jobs whose model is missing or stale, with progress on the screen."""
    todo = [job for job in jobs if not artifacts.is_current(job.model_folder, job.recipe())]
    at_once = parallel_jobs(run)
    check_room(todo, at_once=at_once)
    for job in todo:
        check_memory(job)
    for job in todo:
        job.save()
    with progress_of(todo) as progress:
        run_jobs(
            [launched(run, job) for job in todo],
            max_parallel=at_once,
            gpus=device.count(),
            on_tick=progress.tick,
            stop_signals=run.config.launch.stop_signals,
        )


def launched(run: Run, job: TrainJob) -> Job:
    """A training job as a launcher sees it."""
    return Job(job.name, WORKER, Path(job.folder), run.config.parallel.num_ranks)


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


def _layout(config: RunConfig) -> ParallelConfig:
    """How the ranks of an expert are divided: those of a dense one have no moe_experts to share."""
    if isinstance(config.model, SparseConfig):
        return config.parallel
    return dataclasses.replace(config.parallel, expert_model_parallel_size=1)


def _with_rate(optim: OptimConfig, lr: float | None) -> OptimConfig:
    return optim if lr is None else dataclasses.replace(optim, lr=lr)
