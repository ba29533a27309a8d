"""Process groups: the only reader and writer of Megatron's parallel state."""

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from xelm_nemo import device
from xelm_nemo.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """This process's place among the ranks of one model; sizes and ranks are Megatron's."""

    rank: int
    dp_size: int
    dp_rank: int
    pp_rank: int


@contextmanager
def model_parallel(
    *,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    seed: int = 1234,
    threads: int = 1,
    deterministic: bool = False,
    graphed: bool = False,
    alone: bool = False,
    timeout_seconds: float = 1800,
) -> Iterator[Layout]:
    """Join the ranks of one model for the length of the block.

    Ranks find each other as torchrun's do (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT);
    without these variables, or with `alone`, the process is a world of its own. With `graphed` dropout's
    streams are generators, which a CUDA graph can hold, and not copies of one's state, which recomputation
    needs to go back to.

    Raises:
        ConfigError: the number of ranks is not a multiple of the model-parallel size.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    world_size = 1 if alone else int(os.environ.get("WORLD_SIZE", 1))
    model_size = tensor_model_parallel_size * pipeline_model_parallel_size
    if world_size % model_size:
        raise ConfigError(
            f"parallel: {tensor_model_parallel_size} tensor x {pipeline_model_parallel_size} pipeline ranks "
            f"do not fit into WORLD_SIZE={world_size}; start a multiple of {model_size} ranks."
        )
    local_rank = 0 if alone else int(os.environ.get("LOCAL_RANK", 0))
    device.enter(local_rank=local_rank, threads=threads, deterministic=deterministic)
    _init_process_group(world_size, timeout_seconds)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size,
        pipeline_model_parallel_size,
        expert_model_parallel_size=expert_model_parallel_size,
        expert_tensor_parallel_size=1,
    )
    model_parallel_cuda_manual_seed(seed, use_cudagraphable_rng=graphed, force_reset_rng=True)
    try:
        yield Layout(
            rank=dist.get_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
            dp_rank=parallel_state.get_data_parallel_rank(),
            pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        )
    finally:
        _reset_fp8_state()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        device.release()


def spans_machines() -> bool:
    """Whether the world's ranks are on several machines, by torchrun's variables, the same on every rank."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    return int(world_size) > int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


class Agreement:
    """Tells all ranks at the same step that one of them wants something, such as to stop.

    The ranks talk over gloo, so that no step waits for the device, and each answer is that of the call
    before, so that no rank waits for another: it came while the step ran.
    """

    def __init__(self) -> None:
        """All ranks call it."""
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def any(self, mine: bool) -> bool:
        """True on all ranks from the call after the one where a rank said True. All ranks call it."""
        if self._group is None:
            return mine
        agreed = self.settle()
        if not agreed:
            said = torch.tensor([int(mine)], dtype=torch.int32)
            work = dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group, async_op=True)
            self._pending = (work, said)
        return agreed

    def all(self, mine: bool) -> bool:
        """Whether all ranks say True, which each waits to hear. All ranks call it."""
        if self._group is None:
            return mine
        said = torch.tensor([int(mine)], dtype=torch.int32)
        dist.all_reduce(said, dist.ReduceOp.MIN, group=self._group)
        return bool(said.item())

    def settle(self) -> bool:
        """The answer to the last call, which no rank may leave unheard."""
        if self._pending is None:
            return False
        (work, said), self._pending = self._pending, None
        work.wait()
        return bool(said.item())


def _init_process_group(world_size: int, timeout_seconds: float) -> None:
    timeout = datetime.timedelta(seconds=timeout_seconds)
    backend = device.distributed_backend()
    # With a device_id here NCCL would connect each of Megatron's groups at once, also those of no use.
    alone: dict[str, Any] = {"store": HashStore(), "rank": 0, "world_size": 1} if world_size == 1 else {}
    dist.init_process_group(backend, timeout=timeout, **alone)
    barrier()


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier(device_ids=[device.device().index] if device.has_cuda() else None)  # NCCL would guess it


def _reset_fp8_state() -> None:
    """Have Transformer Engine forget in which group it agrees on FP8 scales, or the next model asks it."""
    if (engine := sys.modules.get("transformer_engine.pytorch.quantization")) is not None:
        engine.FP8GlobalStateManager.reset()


def is_first_stage() -> bool:
    """Whether this rank holds the embedding."""
    from megatron.core import parallel_state

    return bool(parallel_state.is_pipeline_first_stage())


def is_last_stage() -> bool:
    """Whether this rank holds the language-model head."""
    from megatron.core import parallel_state

    return bool(parallel_state.is_pipeline_last_stage())


def data_parallel_group() -> dist.ProcessGroup:
    """The ranks that hold the same tensors and read other data."""
    from megatron.core import parallel_state

    group: dist.ProcessGroup = parallel_state.get_data_parallel_group()
    return group


def share_from_last_stage(value: torch.Tensor) -> torch.Tensor:
    """The last pipeline stage's value, on every stage."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(value, source, group=parallel_state.get_pipeline_model_parallel_group())
    return value
