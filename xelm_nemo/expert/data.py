"""Batches of one model: sequence i of a step is the same whatever the number of ranks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from xelm_nemo import device
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.parallel import Layout
from xelm_nemo.shards.build import shard_prefix
from xelm_nemo.shards.dataset import TokenStream

Batch = dict[str, torch.Tensor]  # "tokens" and "labels", int64 [B, S]


class Batches:
    """The training and validation data of a job, for one data-parallel rank."""

    def __init__(self, job: TrainJob, layout: Layout) -> None:
        """Open the job's token shards."""
        self._job, self._layout = job, layout
        self._train = self._stream("train", seed=job.seed)
        self._valid = self._stream("valid", seed=None)
        self.micro_batches = job.global_batch_size // (job.micro_batch_size * layout.dp_size)

    def train(self, iteration: int) -> Iterator[Batch]:
        """This rank's micro-batches of a training step."""
        first = iteration * self._job.global_batch_size
        return self._micro_batches(self._train, range(first, first + self._job.global_batch_size))

    def valid(self) -> list[Batch]:
        """This rank's micro-batches of one validation pass."""
        step = self._job.micro_batch_size * self._layout.dp_size
        blocks = min(self._valid.num_blocks, self._job.eval_sequences)
        rounded = -(-blocks // step) * step  # past the end the stream starts again
        return list(self._micro_batches(self._valid, range(rounded)))

    def _stream(self, split: str, *, seed: int | None) -> TokenStream:
        prefixes = [shard_prefix(Path(self._job.tokens), cluster, split) for cluster in self._job.clusters]
        return TokenStream(prefixes, self._job.seq_length, seed=seed)

    def _micro_batches(self, stream: TokenStream, blocks: range) -> Iterator[Batch]:
        size, ranks = self._job.micro_batch_size, self._layout.dp_size
        for start in range(blocks.start + self._layout.dp_rank * size, blocks.stop, ranks * size):
            rows = np.stack([stream.block(index) for index in range(start, start + size)])
            block = torch.from_numpy(rows).to(device.device(), non_blocking=True)
            yield {"tokens": block[:, :-1].contiguous(), "labels": block[:, 1:].contiguous()}
