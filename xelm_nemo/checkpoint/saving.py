"""A training state on its way to the disk, while training goes on.

The copy to the host's memory is made while the next step computes its gradient. Threads write it, and when
all ranks have written, rank 0 hashes the files and gives their folder its name. What ranks have to say to
each other they say in between, at the same step, in the thread that trains.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from xelm_nemo import device
from xelm_nemo.checkpoint.host_memory import HostMemory
from xelm_nemo.errors import CheckpointError
from xelm_nemo.parallel import Agreement


@contextlib.contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be written.

    Raises:
        CheckpointError: the block failed at that.
    """
    try:
        yield
    except (CheckpointException, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder.parent} cannot be written ({reason}); what was there before is whole. "
            "Make room and run again."
        ) from error


class Plan:
    """What of a state goes where: Megatron works it out for the first save of a run and keeps it for all.

    A run's states differ in their numbers alone. Megatron takes that for granted, and so it is checked here.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._strategy = TorchDistSaveShardedStrategy("torch_dist", 1, cached_metadata=True)
        self._tensors: set[tuple[Any, ...]] | None = None  # of the first state

    def begin(self, state: dict[str, Any], folder: Path) -> Any:
        """Megatron's request to write a sharded state into a folder.

        Raises:
            CheckpointError: it has other tensors than the first one.
        """
        tensors, is_first = _tensors_of(state), self._tensors is None
        if not is_first and tensors != self._tensors:
            names = sorted({str(tensor[0]) for tensor in tensors ^ (self._tensors or set())})
            raise CheckpointError(
                f"{folder}: the state has changed in {', '.join(names[:3])} since the run's first save; run "
                "the same command again, which goes on from the newest checkpoint, and please report this."
            )
        request = dist_checkpointing.save(
            state,
            str(folder),
            self._strategy,
            validate_access_integrity=is_first,
            async_sharded_save=True,
        )
        self._tensors = tensors
        return request


def _tensors_of(state: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What a plan depends on: names, places, sizes and number formats."""
    found = (value for value in nested_values(state) if isinstance(value, ShardedBase))
    return {
        (value.key, value.global_shape, value.global_offset, getattr(value, "local_shape", None))
        + ((value.dtype,) if isinstance(value, ShardedTensor) else ())
        for value in found
    }


class Save:
    """One training state, from the copy to the name of its folder. All ranks call all methods."""

    def __init__(
        self,
        state: dict[str, Any],
        part: Path,
        folder: contextlib.ExitStack,
        *,
        plan: Plan,
        memory: HostMemory,
        agreement: Agreement,
    ) -> None:
        """Begin. From here on the state must not change before `wait_for_copy` has been called.

        Args:
            state: sharded, as Megatron saves it.
            part: where to write, a folder that is there and empty.
            folder: is closed, in a thread, when all ranks have written, or left with the error.
            plan: of all saves of the run.
            memory: takes the copy, and no other one until the save has ended.
            agreement: of all ranks.
        """
        self._part, self._folder, self._agreement = part, folder, agreement
        with self._leaving_nothing_half():
            self._request = plan.begin(state, part)
            # These tensors live as long as the request, and so until they are copied. A rank may have none.
            buckets = self._request.async_fn_args[1] if self._request.async_fn_args else []
            # Beside a GPU, those on the CPU are Megatron's copies already.
            live = [tensor for tensor in _tensors(buckets) if tensor.device == device.device()]
            copies, self._copied = memory.copy(live)
        self._pool = ThreadPoolExecutor(1, "save", initializer=device.thread_start())
        self._written = self._pool.submit(self._write, _with_copies(buckets, iter(copies)))
        self._named: Future[None] | None = None

    def wait_for_copy(self) -> None:
        """Have the device make the copy before whatever it is told from now on."""
        torch.cuda.current_stream().wait_event(self._copied)

    def has_ended(self) -> bool:
        """Do what is due now; whether the folder has its name.

        Raises:
            CheckpointError: a rank could not write; what was there before is whole.
        """
        with self._leaving_nothing_half():
            if self._named is None:
                if not self._agreement.all(self._written.done()):
                    return False
                self._raise_on_all_ranks(self._written)
                for finalize in self._request.finalize_fns:
                    finalize()
                self._named = self._pool.submit(self._folder.close)
            if not self._agreement.all(self._named.done()):
                return False
            self._raise_on_all_ranks(self._named)
        self._pool.shutdown()
        return True

    def end(self) -> None:
        """Wait until the folder has its name.

        Raises:
            CheckpointError: as `has_ended`.
        """
        while not self.has_ended():
            wait([self._named or self._written])

    def abandon(self, error: BaseException) -> None:
        """Leave nothing half-written and no thread at work; a folder that is being named gets its name."""
        wait([self._written, *([self._named] if self._named else [])])
        self._pool.shutdown()
        self._folder.__exit__(type(error), error, error.__traceback__)

    def _raise_on_all_ranks(self, done: "Future[None]") -> None:
        """If a rank's thread has failed, fail on all of them, for they wait for each other."""
        error = done.exception()
        if not self._agreement.all(error is None):
            raise error or OSError("another rank failed; its log says why")

    def _write(self, buckets: list[Any]) -> None:
        self._copied.synchronize()
        if buckets:
            rank, _, results = self._request.async_fn_args
            self._request.async_fn(rank, buckets, results)

    @contextlib.contextmanager
    def _leaving_nothing_half(self) -> Iterator[None]:
        try:
            with room_on_disk(self._part):
                yield
        except BaseException as error:
            self._folder.__exit__(type(error), error, error.__traceback__)
            raise


def _tensors(buckets: list[Any]) -> Iterator[Tensor]:
    """Those of Megatron's buckets, (path, name, (bytes, tensors))."""
    return (tensor for *_, (_, items) in buckets for _, tensor in items)


def _with_copies(buckets: list[Any], copies: Iterator[Tensor]) -> list[Any]:
    """The buckets with copies, which come in this order, in place of what is on the device."""
    place = device.device()
    return [
        (path, name, (texts, [(item, next(copies) if t.device == place else t) for item, t in items]))
        for path, name, (texts, items) in buckets
    ]
