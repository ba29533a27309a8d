"""Batches of one model: sequence i of a step is the same whatever the number of ranks."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xelm_nemo import device
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.parallel import Layout
from xelm_nemo.shards.build import read_vocab_size, shard_prefix
from xelm_nemo.shards.dataset import TokenStream, has_tokens

# "tokens" and "labels", int64 [B, S], and of some a "weight", float32 [B]
Batch = dict[str, torch.Tensor]


def check_vocabulary(job: TrainJob) -> None:
    """See that the seed model has weights for every id that the job's tokenizer can give.

    Raises:
        ConfigError: it has fewer. Fewer ids than weights are fine: some rows are then not trained.
    """
    ids, rows = read_vocab_size(Path(job.tokens)), load_facts(Path(job.init)).vocab_size
    if ids > rows:
        raise ConfigError(
            f"tokenizer.path: the tokenizer {job.tokenizer} has {ids} ids, the model {job.init} has weights "
            f"for {rows}; set tokenizer.path to the tokenizer that this model was trained with."
        )


class Batches:
    """The training and validation data of a job, for one data-parallel rank."""

    def __init__(self, job: TrainJob, layout: Layout) -> None:
        """Open the job's token shards."""
        self._job, self._layout = job, layout
        self._train = TokenStream(self._shards("train"), job.seq_length, seed=job.seed)
        valid = self._shards("valid")  # all empty when the clusterer puts no validation document here
        self._valid = TokenStream(valid, job.seq_length, seed=None) if any(map(has_tokens, valid)) else None
        self._reader = ThreadPoolExecutor(1, "data")
        self._ahead: dict[int, Future[list[NDArray[np.int64]]]] = {}
        self.waited_seconds = 0.0  # for training sequences, so far
        self.micro_batches = job.global_batch_size // (job.micro_batch_size * layout.dp_size)

    @property
    def can_validate(self) -> bool:
        """Whether the job's clusters have a validation document."""
        return self._valid is not None

    def train(self, iteration: int) -> Iterator[Batch]:
        """This rank's micro-batches of a training step; the next step's are read meanwhile."""
        began = time.perf_counter()
        rows = self._ahead.pop(iteration, None) or self._reader.submit(self._read_step, iteration)
        step = rows.result()
        self.waited_seconds += time.perf_counter() - began
        self._ahead = {iteration + 1: self._reader.submit(self._read_step, iteration + 1)}
        return map(_on_device, step)

    def rows(self, iteration: int) -> NDArray[np.int64]:
        """The training step's sequences of all ranks, [global_batch_size, seq_length + 1]."""
        first = iteration * self._job.global_batch_size
        return np.stack([self._train.block(first + row) for row in range(self._job.global_batch_size)])

    def valid(self) -> list[Batch]:
        """This rank's micro-batches of one validation pass, if the job can validate.

        Micro-batches are full: sequences beyond the last one count nothing, the others so much more that the
        mean over all ranks' batches is that of the sequences, at every layout.
        """
        assert self._valid is not None
        step = self._job.micro_batch_size * self._layout.dp_size
        blocks = min(self._valid.num_blocks, self._job.eval_sequences)
        rounded = -(-blocks // step) * step
        batches = list(map(_on_device, self._read(self._valid, range(rounded))))
        if rounded > blocks:
            weight = np.where(np.arange(rounded) < blocks, rounded / blocks, 0.0).astype(np.float32)
            by_rank = weight.reshape(-1, self._layout.dp_size, self._job.micro_batch_size)
            for batch, own in zip(batches, by_rank[:, self._layout.dp_rank], strict=True):
                batch["weight"] = torch.from_numpy(own).to(device.device())
        return batches

    def _shards(self, split: str) -> list[Path]:
        return [shard_prefix(Path(self._job.tokens), cluster, split) for cluster in self._job.clusters]

    def _read_step(self, iteration: int) -> list[NDArray[np.int64]]:
        first = iteration * self._job.global_batch_size
        return self._read(self._train, range(first, first + self._job.global_batch_size))

    def _read(self, stream: TokenStream, blocks: range) -> list[NDArray[np.int64]]:
        """This rank's micro-batches of these blocks, each [micro_batch_size, seq_length + 1]."""
        size, ranks = self._job.micro_batch_size, self._layout.dp_size
        starts = range(blocks.start + self._layout.dp_rank * size, blocks.stop, ranks * size)
        return [np.stack([stream.block(index) for index in range(start, start + size)]) for start in starts]


def _on_device(rows: NDArray[np.int64]) -> Batch:
    block = torch.from_numpy(rows)
    if device.has_cuda():  # from other pages CUDA copies only when all that it was told before is done
        block = block.pin_memory()
    return as_batch(block.to(device.device(), non_blocking=True))


def as_batch(block: torch.Tensor) -> Batch:
    """Sequences [B, S + 1], each token but the first being the label of the one before it."""
    return {"tokens": block[:, :-1].contiguous(), "labels": block[:, 1:].contiguous()}
