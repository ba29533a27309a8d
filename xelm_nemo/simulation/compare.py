"""A run's experts against its dense baseline of equal tokens, on clusters of several sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.simulation.cluster import Jobs, simulate
from xelm_nemo.simulation.rates import Rates

_HOUR = 3600.0


@dataclass(frozen=True)
class Hours:
    """Hours until all is done: the mean of several courses, and between what nine of ten lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One way to train: jobs that are alike, on as many GPUs as each can take."""

    jobs: int
    gpus: int  # of each job
    undisturbed: float  # hours, without a queue or an interruption
    hours: Hours
    interruptions: float  # of all jobs, mean


@dataclass(frozen=True)
class Comparison:
    """Both ways on so many GPUs."""

    gpus: int
    experts: Side
    dense: Side


def compare(
    config: RunConfig, rates: Rates, gpus: Sequence[int], *, courses: int, seed: int
) -> list[Comparison]:
    """Simulate a run's experts, and a dense model of as many tokens and so as many operations.

    A model takes as many data-parallel ranks as its batch divides into and as there are GPUs for. Where the
    GPUs do not suffice for all experts at once, they take turns.

    Args:
        config: of the run: experts, batches, iterations, layout, checkpoints.
        rates: of the cluster.
        gpus: sizes of clusters.
        courses: simulated for each.
        seed: of the first course.

    Raises:
        ConfigError: a cluster is too small for one model, or the run has rounds or sparse models.
    """
    if config.rounds.kind != "single":
        raise ConfigError(f"rounds.kind={config.rounds.kind!r} is not simulated; leave the rounds out.")
    if config.upcycle.enabled or config.parallel.expert_model_parallel_size > 1:
        raise ConfigError(
            "upcycle.enabled=true and parallel.expert_model_parallel_size are of sparse models, which are "
            "not simulated; leave them out."
        )
    clusters, batch = config.clustering.num_clusters, config.training.global_batch_size
    found = []
    for number in gpus:
        sides = [
            _side(config, rates, number, models, batch // models, range(seed, seed + courses))
            for models in (clusters, 1)
        ]
        found.append(Comparison(number, *sides))
    return found


def _side(
    config: RunConfig, rates: Rates, gpus: int, models: int, batch_size: int, seeds: Sequence[int]
) -> Side:
    """Models that share the GPUs, each with so many sequences a step."""
    each = _gpus_of_model(config, max(gpus // models, 1), batch_size, gpus)
    step = batch_size * config.seq_length / rates.tokens_a_second(each)
    jobs = Jobs(models, each, config.training.train_iters * step, config.training.save_interval * step)
    courses = [simulate(jobs, rates, gpus=gpus, seed=seed) for seed in seeds]
    hours = np.array([course.makespan for course in courses]) / _HOUR
    low, high = np.quantile(hours, [0.05, 0.95])
    turns = -(-models // (gpus // each))
    return Side(
        models,
        each,
        jobs.work * turns / _HOUR,
        Hours(float(hours.mean()), float(low), float(high)),
        float(np.mean([course.failures + course.preemptions for course in courses])),
    )


def _gpus_of_model(config: RunConfig, share: int, batch_size: int, gpus: int) -> int:
    """The most GPUs of its share that a model can use: whole data-parallel ranks with whole micro-batches."""
    layout, micro_batches = config.parallel, batch_size // config.training.micro_batch_size
    one = layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size
    if one > gpus:
        raise ConfigError(f"gpus={gpus} is less than the {one} GPUs that parallel.* gives one model.")
    ranks = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0 and n * one <= share]
    return one * max(ranks, default=1)
