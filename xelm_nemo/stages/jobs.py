"""The models of a run as training jobs: the seed model, the experts, and the baselines."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.job import MODEL, TrainJob
from xelm_nemo.launch.job import Job
from xelm_nemo.model.config import ParallelConfig, SparseConfig
from xelm_nemo.rounds.plan import PlannedExpert, Rounds, with_ancestors
from xelm_nemo.stages.rounds import rounds_of
from xelm_nemo.stages.run import Run, inherited

WORKER = "xelm_nemo.expert"
SEED_MODEL = "seed_model"
UPCYCLED = "upcycled"  # the sparse baseline's name


def seed_job(run: Run) -> TrainJob:
    """The seed model, trained on all clusters with as many sequences a step as all experts together."""
    config, seed_model = run.config, run.config.seed_model
    return dataclasses.replace(
        _from_seed_model(run),
        name=SEED_MODEL,
        folder=str(run.seed_model),
        init=str(run.seed_init),
        optim=_with_rate(config.optim, seed_model.lr),
        train_iters=seed_model.train_iters,
        seed=seed_model.seed,
        tokens_before=_source_tokens(run),
        resume_at=None,  # that is for the experts and the dense model
        threads=seed_model.threads,
    )


def dense_job(run: Run) -> TrainJob:
    """The dense baseline: all clusters, and as many tokens as all experts of all rounds together."""
    config = run.config
    return dataclasses.replace(
        _from_seed_model(run),
        name="dense",
        folder=str(run.experts / "dense"),
        optim=_with_rate(config.optim, config.dense.lr),
        train_iters=config.dense_iters,
        global_batch_size=config.dense_batch_size,
    )


def upcycled_job(run: Run) -> TrainJob:
    """The sparse baseline: all clusters, and as many tokens as all experts of all rounds together."""
    config = run.sized
    return dataclasses.replace(
        _from_seed_model(run),
        name=UPCYCLED,
        folder=str(run.experts / UPCYCLED),
        init=str(run.upcycled_init),
        shape=config.upcycled_shape,
        parallel=config.parallel,
        optim=_with_rate(config.optim, config.upcycle.lr),
        train_iters=config.upcycle_iters,
        global_batch_size=config.upcycle_batch_size,
    )


def baseline_jobs(run: Run) -> list[TrainJob]:
    """The dense and the sparse baseline, if they are asked for."""
    dense = [dense_job(run)] if run.config.dense.enabled else []
    return [*dense, upcycled_job(run)] if run.config.upcycle.enabled else dense


def expert_job(run: Run, cluster: int) -> TrainJob:
    """The expert of one cluster, of the last round.

    Raises:
        KeyError: the expert is of the set that the run adds to.
    """
    planned = {expert.cluster: expert for expert in rounds_of(run)[-1]}
    return _planned_job(run, planned[cluster])


def all_rounds(run: Run) -> list[list[TrainJob]]:
    """Every expert of every round."""
    return _jobs(run, rounds_of(run))


def rounds_to_train(run: Run) -> list[list[TrainJob]]:
    """The experts to train now, those that they begin from in the rounds before."""
    return _jobs(run, with_ancestors(rounds_of(run), run.config.train_clusters))


def round_jobs(run: Run) -> list[TrainJob]:
    """The experts to train now, round after round; first the baselines, because they take longest."""
    return [*baseline_jobs(run), *(job for jobs in rounds_to_train(run) for job in jobs)]


def _jobs(run: Run, rounds: Rounds) -> list[list[TrainJob]]:
    like = _from_seed_model(run)
    return [[_planned_job(run, expert, like) for expert in experts] for experts in rounds]


def _planned_job(run: Run, expert: PlannedExpert, like: TrainJob | None = None) -> TrainJob:
    config, is_last = run.config, expert.round == len(run.config.round_sizes) - 1
    like = like or _from_seed_model(run)
    return dataclasses.replace(
        like,
        name=_name(run, expert.round, expert.cluster),
        folder=str(_folder(run, expert.round, expert.cluster)),
        init=str(_init(run, expert)),
        clusters=list(expert.reads),
        train_iters=config.round_iters[expert.round],
        global_batch_size=config.batch_size(expert.round),
        tokens_before=_share(run, like.tokens_before, expert.reads),
        seed=_round_seed(config.training.seed, expert.round),
        resume_at=config.checkpoint.resume_at if is_last else None,
    )


def _round_seed(seed: int, number: int) -> int:
    """A round's own, of order and dropout: else a child goes through its parent's sequences again."""
    return (seed + number) % 2**32  # as far as training.seed may go


def _name(run: Run, number: int, cluster: int) -> str:
    """The last round's experts are the set's; those before it are named by their round too."""
    is_last = number == len(run.config.round_sizes) - 1
    return f"expert{cluster}" if is_last else f"round{number}-expert{cluster}"


def _folder(run: Run, number: int, cluster: int) -> Path:
    return run.round(number) / f"expert{cluster}"


def _init(run: Run, expert: PlannedExpert) -> Path:
    """The model folder that an expert begins from."""
    if expert.parent is None:
        return run.seed_weights
    if expert.round == 0:
        return inherited(run)[expert.parent].model
    return _folder(run, expert.round - 1, expert.parent) / MODEL


def _from_seed_model(run: Run) -> TrainJob:
    """A model of the run's shape that begins from the seed model and reads all clusters."""
    config, training = run.sized, run.config.training
    return TrainJob(
        name="",
        folder="",
        init=str(run.seed_weights),
        tokens=str(run.tokens),
        tokenizer=str(run.tokenizer),
        clusters=list(range(config.clustering.num_clusters)),
        shape=config.model,
        parallel=_layout(config),
        optim=config.optim,
        dtype=run.config.precision.params_dtype,
        fp8=run.config.precision.fp8,
        train_iters=training.train_iters,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        seq_length=config.seq_length,
        document_mask=training.document_mask,
        tokens_before=_tokens_before(run),
        seed=training.seed,
        log_interval=training.log_interval,
        save_interval=training.save_interval,
        eval_interval=training.eval_interval,
        eval_sequences=training.eval_sequences,
        skip_bad_steps=training.skip_bad_steps,
        profile_iters=training.profile_iters or [],
        wandb_project=training.wandb_project,
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


def _source_tokens(run: Run) -> int:
    """What the finished model that the run's seed model is taken from was trained on since its own seed."""
    if run.base is not None or run.config.seed_model.source != "model":
        return 0
    facts = load_facts(run.finished_seed)
    return 0 if facts.name == SEED_MODEL else facts.consumed_tokens


def _tokens_before(run: Run) -> int:
    """What all models of the run have behind them and tables count.

    Tables begin behind the seed model, which their models have in common; where that is a finished model,
    trained further than theirs, they begin behind its seed.
    """
    source = _source_tokens(run)
    if not source:
        return 0
    config = run.sized
    step = config.training.global_batch_size * config.seq_length
    return source + config.seed_model.train_iters * step


def _share(run: Run, tokens: int, clusters: Sequence[int]) -> int:
    """The part of some tokens that falls to an expert of these clusters; those of a set have them once."""
    parts, rest = divmod(tokens, run.config.clustering.num_clusters)
    return sum(parts + (cluster < rest) for cluster in clusters)


def is_finished(job: TrainJob) -> bool:
    """Whether a model is whole and up to date; not while what it is made from is missing."""
    try:
        return artifacts.is_current(job.model_folder, job.recipe())
    except ArtifactError:
        return False


def current_models(run: Run) -> dict[str, Path]:
    """The model folders that are there and up to date, by name: experts in cluster order, then baselines."""
    models = {f"expert{cluster}": found.model for cluster, found in inherited(run).items()}
    jobs = [*all_rounds(run)[-1], *baseline_jobs(run)]
    return models | {
        job.name: job.model_folder for job in jobs if artifacts.is_current(job.model_folder, job.recipe())
    }


def finished_models(run: Run) -> dict[str, Path]:
    """The model folders of the experts in cluster order, then of the baselines, by name.

    Raises:
        ArtifactError: one of them is missing, or was made from other clusters, tokens or settings.
    """
    names = [f"expert{cluster}" for cluster in range(run.config.clustering.num_clusters)]
    names += [job.name for job in baseline_jobs(run)]
    models = current_models(run)
    missing = [name for name in names if name not in models]
    if missing:
        raise ArtifactError(
            f"{run.experts} has no up-to-date {', '.join(missing)}; run `python -m xelm_nemo.train` with "
            "training.train_clusters=null first."
        )
    return models


def to_train(jobs: Sequence[TrainJob]) -> list[TrainJob]:
    """The jobs, in order, whose model is missing or stale, or is to begin from one that is."""
    todo: dict[str, TrainJob] = {}  # by the folder of the model
    for job in jobs:
        if job.init in todo or not is_finished(job):
            todo[str(job.model_folder)] = job
    return list(todo.values())


def launched(run: Run, job: TrainJob, others: Sequence[TrainJob] = ()) -> Job:
    """A training job as a launcher sees it, which may have to wait for one of the others."""
    after = next((other.name for other in others if str(other.model_folder) == job.init), None)
    return Job(job.name, WORKER, Path(job.folder), run.config.parallel.num_ranks, after=after)


def _layout(config: RunConfig) -> ParallelConfig:
    """How the ranks of an expert are divided: those of a dense one have no moe_experts to share."""
    if isinstance(config.model, SparseConfig):
        return config.parallel
    return dataclasses.replace(config.parallel, expert_model_parallel_size=1)


def _with_rate(optim: OptimConfig, lr: float | None) -> OptimConfig:
    return optim if lr is None else dataclasses.replace(optim, lr=lr)
