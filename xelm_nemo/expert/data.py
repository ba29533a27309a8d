"""Batches of one model: sequence i of a step is the same whatever the number of ranks."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from xelm_nemo import device
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.documents import takes_packed, within_documents
from xelm_nemo.parallel import Layout
from xelm_nemo.shards.build import read_vocab_size, shard_prefix
from xelm_nemo.shards.dataset import TokenStream, has_tokens

# "tokens" and "labels", int64 [B, S], and of some
#     "weight", float32 [B, S] or [B, 1]: how much each label's loss counts. Its mean over the labels of a
#         step is 1; without one all count the same.
#     "positions", int64 [B, S], and "attention", what else keeps documents apart (`within_documents`).
# With these two [B, S] is [1, B * S] where attention takes packed documents.
Batch = dict[str, Any]


class Rows(NamedTuple):
    """Sequences of a micro-batch, [B, S + 1], and of a batch with these its `weight` and its `positions`."""

    tokens: NDArray[np.int64]
    weight: NDArray[np.float32] | None
    positions: NDArray[np.int64] | None


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
        self.can_validate = self._valid is not None and self._has_label(self._valid)
        self._reader = ThreadPoolExecutor(1, "data")
        self._ahead: dict[int, Future[list[Rows]]] = {}
        self.waited_seconds = 0.0  # for training sequences, so far
        self.micro_batches = job.global_batch_size // (job.micro_batch_size * layout.dp_size)

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

    def valid(self) -> tuple[int, Iterator[Batch]]:
        """How many micro-batches this rank has in a validation pass, and these, if the job can validate.

        Micro-batches are full: sequences beyond the last one count nothing, the others so much more that the
        mean over all ranks' batches is that of the labels that count, at every layout.
        """
        assert self._valid is not None
        step = self._job.micro_batch_size * self._layout.dp_size
        blocks = self._num_valid_blocks(self._valid)
        rounded = range(-(-blocks // step) * step)
        rows = self._read(self._valid, rounded, num_counted=blocks)
        return len(rows), map(_on_device, rows)  # one at a time: without packing each has a mask

    def _num_valid_blocks(self, stream: TokenStream) -> int:
        return min(stream.num_blocks, self._job.eval_sequences)

    def _has_label(self, stream: TokenStream) -> bool:
        """Whether a validation has anything to count: a single long source may fill its sequences."""
        return any(stream.is_target(index).any() for index in range(self._num_valid_blocks(stream)))

    def _shards(self, split: str) -> list[Path]:
        return [shard_prefix(Path(self._job.tokens), cluster, split) for cluster in self._job.clusters]

    def _read_step(self, iteration: int) -> list[Rows]:
        size = self._job.global_batch_size
        return self._read(self._train, range(iteration * size, (iteration + 1) * size), num_counted=size)

    def _read(self, stream: TokenStream, blocks: range, *, num_counted: int) -> list[Rows]:
        """This rank's micro-batches of the blocks of a step, of which the first so many count."""
        size, ranks = self._job.micro_batch_size, self._layout.dp_size
        weights = label_weights(stream, blocks, num_counted)
        read = []
        for start in range(self._layout.dp_rank * size, len(blocks), ranks * size):
            own = slice(start, start + size)
            tokens = np.stack([stream.block(index) for index in blocks[own]])
            positions = None
            if self._job.document_mask:
                positions = np.stack([stream.positions(index) for index in blocks[own]])
            read.append(Rows(tokens, None if weights is None else weights[own], positions))
        return read


def label_weights(stream: TokenStream, blocks: range, num_counted: int) -> NDArray[np.float32] | None:
    """How much each label of a step counts: labels that are learned, of blocks that count, all the same.

    Every rank finds them for all ranks, so that the mean is that of the whole step, not of unequal means.

    Args:
        stream: where the blocks are.
        blocks: of all ranks.
        num_counted: how many of them count; the others fill up.

    Returns:
        float32 [blocks, S], or [blocks, 1], of mean 1, or 0 where no label counts; None if all do.
    """
    if not stream.has_sources and num_counted == len(blocks):
        return None
    counts = (np.arange(len(blocks)) < num_counted)[:, None]
    if stream.has_sources:
        counts = counts & np.stack([stream.is_target(index) for index in blocks])
    weights: NDArray[np.float32] = (counts * (counts.size / max(1, counts.sum()))).astype(np.float32)
    return weights


def _on_device(rows: Rows) -> Batch:
    batch = as_batch(device.sent(rows.tokens))
    if rows.weight is not None:
        batch["weight"] = device.sent(rows.weight)
    if rows.positions is None:
        return batch
    batch["positions"] = device.sent(rows.positions)
    if takes_packed():
        shape = batch["tokens"].shape
        batch = {name: tensor.expand(shape).reshape(1, -1) for name, tensor in batch.items()}
    return batch | {"attention": within_documents(rows.positions)}


def as_batch(block: torch.Tensor) -> Batch:
    """Sequences [B, S + 1], each token but the first being the label of the one before it."""
    return {"tokens": block[:, :-1].contiguous(), "labels": block[:, 1:].contiguous()}
