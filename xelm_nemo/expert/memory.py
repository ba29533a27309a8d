"""Whether a GPU's memory holds a training job: said before its first step, with what would fit."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from xelm_nemo import device
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.graph import why_no_graph_of
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.config import ParallelConfig, PrecisionConfig, fp8_problems, layout_problems
from xelm_nemo.model.memory import MARGIN, RESERVED_BYTES, Parts, StepSizes, peak_parts
from xelm_nemo.model.sparse import sparse_problems

log = logging.getLogger(__name__)

_GIB, _MIB = 2**30, 2**20


def check_memory(job: TrainJob, *, vocab_size: int | None = None) -> None:
    """Refuse a job that this machine's GPUs surely cannot hold; without GPUs there is nothing to refuse.

    Args:
        job: to be trained.
        vocab_size: of its model; None: of `job.init`.

    Raises:
        ConfigError: says what is needed and, where something would, what fits.
    """
    there = device.total_bytes()
    if not there:
        return
    vocab_size = vocab_size or load_facts(Path(job.init)).vocab_size
    if _total(job, vocab_size) > there * MARGIN:
        raise ConfigError(
            f"training.micro_batch_size={job.micro_batch_size}: {job.name} takes "
            f"{describe(job, vocab_size)}; there are {there / _GIB:.1f} GiB. "
            f"{_advice(job, vocab_size, there)}"
        )


def report_memory(job: TrainJob) -> None:
    """Log what the job will take of each GPU; warn if that is nearly all. Without GPUs say nothing."""
    there = device.total_bytes()
    if not there:
        return
    vocab_size = load_facts(Path(job.init)).vocab_size
    log.info("%s: %s", job.name, describe(job, vocab_size))
    if not _fits(job, vocab_size, there):
        log.warning(
            "%s: the GPU has %.1f GiB, of which CUDA and NCCL take up to %.0f, so this may not fit. %s",
            *(job.name, there / _GIB, RESERVED_BYTES / _GIB, _advice(job, vocab_size, there)),
        )


def describe(job: TrainJob, vocab_size: int) -> str:
    """The estimate in words."""
    parts = _parts(job, vocab_size)
    total = sum(parts.values())
    unit, name = (_GIB, "GiB") if total >= _GIB else (_MIB, "MiB")
    listed = ", ".join(f"{part} {size / unit:.1f}" for part, size in parts.items())
    return f"about {total / unit:.1f} {name} a GPU: {listed}"


def _advice(job: TrainJob, vocab_size: int, there: int) -> str:
    for settings, smaller in _smaller(job):
        if _fits(smaller, vocab_size, there):
            return f"Use {settings}."
    return (
        "Divide the model further, with parallel.tensor_model_parallel_size and "
        "parallel.pipeline_model_parallel_size."
    )


def _smaller(job: TrainJob) -> Iterator[tuple[str, TrainJob]]:
    """Settings that take less memory, those first that cost least, each with the job as it would be."""
    size, layout = job.micro_batch_size, job.parallel
    share, ranks = job.global_batch_size // layout.data_parallel_size, layout.tensor_model_parallel_size
    full = dataclasses.replace(layout, recompute_granularity="full")
    fewer = [n for n in range(size - 1, 0, -1) if share % n == 0]
    changes = [
        *((f"training.micro_batch_size={n}", n, layout) for n in fewer),
        ("parallel.recompute_granularity=full", size, full),
        *((f"training.micro_batch_size={n} and parallel.recompute_granularity=full", n, full) for n in fewer),
        *(
            (f"parallel=tp{tp}_sp", size, ParallelConfig(tp, sequence_parallel=True))
            for tp in (2, 4)
            if tp > ranks
        ),
    ]
    for settings, n, other in changes:
        if not _misfits(job, n, other):
            yield settings, dataclasses.replace(job, micro_batch_size=n, parallel=other)


def _misfits(job: TrainJob, micro_batch_size: int, layout: ParallelConfig) -> list[str]:
    """Why the job's model cannot be divided so."""
    precision, tokens = PrecisionConfig(job.dtype, job.fp8), micro_batch_size * job.seq_length
    problems = layout_problems(job.shape, layout) + fp8_problems(job.shape, layout, precision, tokens)
    problems += sparse_problems(job.shape, layout)
    if layout.sequence_parallel and job.seq_length % layout.tensor_model_parallel_size:
        problems.append("the sequence does not divide")
    return problems


def _fits(job: TrainJob, vocab_size: int, there: int) -> bool:
    return _total(job, vocab_size) + RESERVED_BYTES <= there


def _total(job: TrainJob, vocab_size: int) -> float:
    return sum(_parts(job, vocab_size).values())


def _parts(job: TrainJob, vocab_size: int) -> Parts:
    batch = job.micro_batch_size * job.parallel.data_parallel_size
    sizes = StepSizes(
        shape=job.shape,
        layout=job.parallel,
        fp8=job.fp8,
        dtype=job.dtype,
        vocab_size=vocab_size,
        seq_length=job.seq_length,
        micro_batch_size=job.micro_batch_size,
        num_micro_batches=job.global_batch_size // batch,
    )
    parts = peak_parts(sizes)
    graphed = job.cuda_graphs and why_no_graph_of(job) is None
    # The memory that a graph is recorded in is its own, so a validation's logits lie beside it.
    return parts | {"validation": parts["head"]} if graphed and "head" in parts else parts
