"""How long training stands still for a checkpoint, and how long until the checkpoint is whole.

python -m xelm_nemo.bench checkpoint output=/data/scratch model=xglm_1_7b micro_batch_size=8 rounds=3
torchrun --nproc-per-node 2 -m xelm_nemo.bench checkpoint output=/data/scratch layouts=dp2

`ours` is timed as the training loop saves: what a step with a save takes longer than the median step without.
`megatron` is what Megatron does in its place, the state brought to the host and written: `stall` is all of
it, as in its synchronous saves, and `stall_async` what a write in another process would leave of it. Our
threads write the files of both. Ours knows from its second round on what goes where, and from its third does
not gather it; Megatron works it out each time, as it does unless asked not to. The floor is the copy of the
same bytes to page-locked memory. Seconds, until the last rank is done.
"""

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from xelm_nemo import device, parallel
from xelm_nemo.bench.setting import JobRequest, Setting, parse, settings, show
from xelm_nemo.bench.timing import Row
from xelm_nemo.bench.train_step import WARM_UPS, Ports, our_model
from xelm_nemo.checkpoint.host_memory import HostMemory
from xelm_nemo.checkpoint.iterations import iteration_folder
from xelm_nemo.checkpoint.store import Checkpoints
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.data import as_batch
from xelm_nemo.expert.step import train_step
from xelm_nemo.files import remove, size_of

# Methods of Megatron's optimizer that ours stand before.
REPLACED = ("sharded_param_state_fully_reshardable", "load_parameter_state_from_fully_reshardable")


@dataclass(frozen=True)
class Request(JobRequest):
    """What the command line asks for."""

    output: str = ""  # a folder on the disk to measure; what is written there is removed
    providers: str = "megatron,ours"


def run(words: Sequence[str]) -> None:
    """Measure what `key=value` words ask for, and print a JSON object a row.

    Raises:
        ConfigError: a word that means nothing, or no folder to write to.
    """
    request = parse(words, Request())
    if not request.output:
        raise ConfigError("output is not set; give a folder on the disk to measure, as output=DIR.")
    if unknown := set(request.providers.split(",")) - {"megatron", "ours"}:
        raise ConfigError(f"providers={request.providers!r} has {sorted(unknown)}; use megatron,ours.")
    folder = Path(request.output) / "xelm_nemo_bench_checkpoint"
    world = int(os.environ.get("WORLD_SIZE", 1))
    ports = Ports() if world > 1 else None
    for names, setting in settings(request, world):
        if ports is not None:
            os.environ["MASTER_PORT"] = str(ports.agree())
        sizes = setting.layout
        with parallel.model_parallel(
            tensor_model_parallel_size=sizes.tensor_model_parallel_size,
            pipeline_model_parallel_size=sizes.pipeline_model_parallel_size,
            threads=max(1, device.cores() // world),
        ):
            try:
                for row in _Job(setting, request.steps, folder).rows(request.rounds, request.providers):
                    if dist.get_rank() == 0:
                        show(names | row, request.json)
            finally:
                if dist.get_rank() == 0:
                    remove(folder)


class _Job:
    """A model in training, and the folder that its checkpoints go to."""

    def __init__(self, setting: Setting, steps: int, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        self._core, self._model, self._optimizer = our_model(setting)
        tokens = torch.randint(setting.vocab_size, (setting.micro_batch_size, setting.seq_length + 1))
        self._batch = as_batch(tokens.to(device.device()))
        self._agreement = parallel.Agreement()
        self._checkpoints = Checkpoints(folder, self._agreement, keep=1)
        self._checkpoints.expect(self._core)
        self._model.train()
        for _ in range(WARM_UPS):
            self._step()
        self._seconds = statistics.median(_timed(self._step) for _ in range(steps))

    def rows(self, rounds: int, providers: str) -> Iterator[Row]:
        """A row a provider and round, in turn."""
        measures = {"megatron": self._megatron, "ours": self._ours}
        for turn in range(rounds):
            for name in providers.split(","):
                row = measures[name](turn + 1)
                row |= {"floor": self._floor(), "step": self._seconds}
                row |= {"stall_by_floor": row["stall"] / row["floor"]}
                yield {"provider": name, "round": turn + 1} | {key: round(row[key], 3) for key in row}

    def _step(self) -> None:
        train_step(
            self._model,
            self._optimizer,
            itertools.repeat(self._batch),
            self._setting.num_micro_batches,
            before_update=self._checkpoints.wait_for_copy,
        )
        self._checkpoints.go_on()

    def _ours(self, iteration: int) -> Row:
        start = time.perf_counter()
        self._checkpoints.begin(iteration, self._core, self._optimizer)
        begun = time.perf_counter() - start
        first, others = _timed(self._step), []
        while not self._agreement.all(iteration in self._checkpoints.iterations()):
            others.append(_timed(self._step))
        whole = time.perf_counter() - start
        self._checkpoints.end()
        lost = sum(others) - len(others) * self._seconds
        return {
            "stall": begun + first - self._seconds,
            "begin": begun,
            "lost_while_writing": lost,
            "steps_while_writing": len(others),
            "whole": whole,
            "gb": size_of(iteration_folder(self._folder, iteration)) / 1e9,
        }

    def _megatron(self, iteration: int) -> Row:
        folder = self._folder / "megatron"
        if dist.get_rank() == 0:
            remove(folder)
            folder.mkdir(parents=True)
        torch.cuda.synchronize()
        parallel.barrier()
        start = time.perf_counter()
        with _without_ours(self._optimizer):
            state = Checkpoints._state(self._core, self._optimizer, loading=False)
        request = dist_checkpointing.save(state, str(folder), async_sharded_save=True)
        buckets = request.preload_fn() if request.preload_fn else []  # a rank may have nothing to write
        parallel.barrier()
        stall_async = time.perf_counter() - start
        if buckets:
            rank, _, results = request.async_fn_args
            request.async_fn(rank, buckets, results)
        for finalize in request.finalize_fns:
            finalize()
        parallel.barrier()
        stall, written = time.perf_counter() - start, size_of(folder)
        parallel.barrier()
        if dist.get_rank() == 0:
            remove(folder)
        return {"stall": stall, "stall_async": stall_async, "whole": stall, "gb": written / 1e9}

    def _floor(self) -> float:
        """Seconds of the copy alone, of what both save."""
        tensors = list(self._core.parameters()) if dist.get_rank(parallel.data_parallel_group()) == 0 else []
        for part in self._optimizer.chained_optimizers:
            for state in part.optimizer.state.items():
                tensors += [state[0], state[1]["exp_avg"], state[1]["exp_avg_sq"]]
        memory: HostMemory = self._checkpoints._memory
        return _timed(lambda: memory.copy(tensors)[1].synchronize())


def _timed(work: Callable[[], Any]) -> float:
    """Seconds until the last rank has done it."""
    torch.cuda.synchronize()
    parallel.barrier()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    parallel.barrier()
    return time.perf_counter() - start


@contextlib.contextmanager
def _without_ours(optimizer: Any) -> Iterator[None]:
    """Megatron's own way to the state."""
    parts = optimizer.chained_optimizers
    ours = [{name: part.__dict__.pop(name) for name in REPLACED} for part in parts]
    try:
        yield
    finally:
        for part, methods in zip(parts, ours, strict=True):
            part.__dict__.update(methods)
