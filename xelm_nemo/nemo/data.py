"""Our token shards as a data module of NeMo's trainer: sequence i of a step is that of our own loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.num_microbatches_calculator import update_num_microbatches
from nemo.lightning import io
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import Dataset

from xelm_nemo.shards.build import shard_prefix
from xelm_nemo.shards.dataset import TokenStream, has_tokens


class TokenBlocks(Dataset[dict[str, torch.Tensor]]):
    """The first blocks of a token stream, which has no end, each as NeMo's model takes it."""

    def __init__(self, stream: TokenStream, num_blocks: int) -> None:
        """Take the stream and how many of its blocks there are to be."""
        self._stream, self._num_blocks = stream, num_blocks

    def __len__(self) -> int:
        return self._num_blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """ "tokens", "labels", "loss_mask" and "position_ids", each [S]."""
        block = torch.from_numpy(self._stream.block(index))
        length = len(block) - 1
        return {
            "tokens": block[:-1].contiguous(),
            "labels": block[1:].contiguous(),
            "loss_mask": torch.from_numpy(self._stream.is_target(index)).float(),
            "position_ids": torch.arange(length),
        }


class TokenShards(pl.LightningDataModule, io.IOMixin):
    """The token shards of some clusters, for `llm.train`."""

    def __init__(
        self,
        tokens: str,
        clusters: Sequence[int],
        *,
        seq_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int = 1234,
    ) -> None:
        """Name the data; nothing is opened yet.

        Args:
            tokens: the folder that `python -m xelm_nemo.shard` wrote.
            clusters: whose documents are read.
            seq_length: tokens of a sequence.
            micro_batch_size: sequences of one forward pass on one data-parallel rank.
            global_batch_size: sequences of a step, over all ranks.
            seed: of the documents' order.
        """
        super().__init__()
        self.tokens, self.clusters, self.seed = tokens, list(clusters), seed
        self.seq_length = seq_length
        self.micro_batch_size, self.global_batch_size = micro_batch_size, global_batch_size
        self.data_sampler = MegatronDataSampler(
            seq_len=seq_length, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size
        )

    def train_dataloader(self) -> Any:
        """The sequences of `max_steps` steps, in the order of our own loop."""
        stream = TokenStream(self._shards("train"), self.seq_length, seed=self.seed)
        return self._loader("train", stream, self.trainer.max_steps * self.global_batch_size)

    def val_dataloader(self) -> Any:
        """The validation documents in the order of the shards, whole steps of them; nothing without any."""
        shards = self._shards("valid")
        if not any(map(has_tokens, shards)):
            return []
        stream = TokenStream(shards, self.seq_length, seed=None)
        steps = -(-stream.num_blocks // self.global_batch_size)
        return self._loader("validation", stream, steps * self.global_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """How many sequences training has read."""
        steps = self.trainer.global_step - self.data_sampler.init_global_step
        return {"consumed_samples": self.data_sampler.compute_consumed_samples(steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the sequences that an earlier run has read."""
        consumed = state["consumed_samples"]
        self.data_sampler.init_consumed_samples = self.data_sampler.prev_consumed_samples = consumed
        self.data_sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed, consistency_check=False)

    def _shards(self, split: str) -> list[Path]:
        return [shard_prefix(Path(self.tokens), cluster, split) for cluster in self.clusters]

    def _loader(self, mode: str, stream: TokenStream, num_blocks: int) -> WrappedDataLoader:
        self.data_sampler.init_global_step = self.trainer.global_step
        return WrappedDataLoader(mode=mode, dataset=TokenBlocks(stream, num_blocks), num_workers=0)
