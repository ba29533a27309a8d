"""Forward and backward of training steps as one CUDA graph, which the CPU launches once a step.

Where the GPU is done with a kernel before the CPU has launched the next one, as in small models and under
tensor parallelism, this is what a step waits for. The bits are those of steps without a graph.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xelm_nemo import device, parallel
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.data import Batch
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.config import NO_FP8, FP8Config, ParallelConfig, SparseConfig

log = logging.getLogger(__name__)

RECORDED = "steps are run as a CUDA graph from now on"
WARM_UPS = 3  # steps that compile kernels, connect ranks and settle FP8's lists
_SEQ_MULTIPLE = 128  # what cuDNN's attention reads at a time in backward, if need be past the last position


def why_no_graph(
    layout: ParallelConfig,
    *,
    seq_length: int,
    document_mask: bool = False,
    is_sparse: bool = False,
    fp8: FP8Config = NO_FP8,
) -> str | None:
    """What keeps steps of such sequences from being a CUDA graph here; None if nothing does."""
    if not device.has_cuda():
        return "there is no GPU"
    if is_sparse:
        return "moe_experts take other numbers of tokens in every step"
    if document_mask:
        return "with training.document_mask=true attention differs from step to step"
    if fp8.param_gather:
        # A validation before the step that is recorded transposes them too, and the step then does not.
        return (
            "with precision.fp8.param_gather=true Transformer Engine transposes weights only in the first "
            "pass after an update, whichever that is"
        )
    if layout.pipeline_model_parallel_size > 1:
        return "stages of a pipeline hand over to each other in every step"
    if layout.recompute_granularity is not None:
        return (
            "parallel.recompute_granularity makes activations again, with dropout that a graph cannot repeat"
        )
    if layout.data_parallel_size > 1 and parallel.spans_machines():
        return "data-parallel ranks of several machines exchange weights while forward computes"
    if seq_length % _SEQ_MULTIPLE:
        return (
            f"training.seq_length={seq_length} is no multiple of {_SEQ_MULTIPLE}, so that backward of "
            "attention may read past the end of the graph's memory"
        )
    return None


def why_no_graph_of(job: TrainJob) -> str | None:
    """What keeps a job's steps from being a CUDA graph here, beside its settings; None if nothing does."""
    facts: dict[str, Any] = {"document_mask": job.document_mask, "fp8": job.fp8}
    is_sparse = isinstance(job.shape, SparseConfig)
    return why_no_graph(job.parallel, seq_length=job.seq_length, is_sparse=is_sparse, **facts)


@contextmanager
def own_stream() -> Iterator[None]:
    """Run the block on a stream that can be recorded, which the default one cannot.

    Backward adds a weight's gradient on the stream where Megatron's wrapper first saw the weight.
    """
    if not device.has_cuda():
        yield
        return
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    default = torch.cuda.current_stream()
    stream.wait_stream(default)
    with torch.cuda.stream(stream):
        yield
    default.wait_stream(stream)


class StepGraph:
    """Runs a step: the first ones as they are, then one while it is recorded, then the recording."""

    def __init__(self, run: Callable[[Iterator[Batch]], Tensor]) -> None:
        """Take the function to record: micro-batches, always as many and as large, to a loss on the GPU."""
        self._run = run
        self._num_runs = 0
        self._graph: Any = None
        self._inputs: list[Batch] = []
        self._loss: Tensor | None = None

    def __call__(self, batches: Iterator[Batch]) -> Tensor:
        """The loss of the step."""
        self._num_runs += 1
        if self._num_runs <= WARM_UPS:
            return self._run(batches)
        if self._graph is None:
            self._record(batches)
        else:
            self._copy_in(batches)
        self._graph.replay()
        assert self._loss is not None
        return self._loss.clone()  # the next step writes over it

    def end(self) -> None:
        """Let the recording go; NCCL waits for it before it leaves a group whose exchanges are in it."""
        if self._graph is not None:
            self._graph.reset()  # an error on its way may hold the object itself
        self._graph = None

    def _record(self, batches: Iterator[Batch]) -> None:
        from megatron.core.tensor_parallel.random import get_all_rng_states

        self._inputs = [{name: tensor.clone() for name, tensor in batch.items()} for batch in batches]
        self._graph = torch.cuda.CUDAGraph()
        for generator in get_all_rng_states().values():
            self._graph.register_generator_state(generator)
        log.info(RECORDED)
        # Other threads of ours read data and save meanwhile, which a stricter mode forbids them.
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._loss = self._run(iter(self._inputs))
        except RuntimeError as error:  # CUDA's state is that of the recording, so nothing can go on
            found = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"a step cannot be recorded as a CUDA graph ({found}); start the same command with "
                "training.cuda_graphs=false, it goes on from the last checkpoint."
            ) from error

    def _copy_in(self, batches: Iterator[Batch]) -> None:
        for own, batch in zip(self._inputs, batches, strict=True):
            for name, tensor in batch.items():
                own[name].copy_(tensor, non_blocking=True)
