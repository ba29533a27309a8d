"""Training sequences as a pure function of (seed, index): what exact resume and any layout rest on."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.errors import ArtifactError


class TokenStream:
    """Documents of token shards, end to end without end, cut into blocks of `seq_length` + 1 tokens.

    Every epoch goes through all documents in an order drawn from (seed, epoch); `seed=None` keeps the
    order of the shards. Block i starts at token i * seq_length of the stream, so that consecutive blocks
    share one token and every token is a target once; documents are cut at block borders and nothing is
    dropped or padded (upstream's packing, without its lost remainder). Shards may be empty, but not all.
    """

    def __init__(self, prefixes: Sequence[Path], seq_length: int, *, seed: int | None) -> None:
        """Open the shards.

        Raises:
            ArtifactError: a shard is missing, or all of them together hold no token.
        """
        self._shards = [_open(prefix) for prefix in prefixes if has_tokens(prefix)]
        if not self._shards:
            raise ArtifactError(f"{', '.join(map(str, prefixes))}: no tokens; give this cluster documents.")
        self._seq_length, self._seed = seq_length, seed
        lengths = [np.asarray(shard.sequence_lengths, dtype=np.int64) for shard in self._shards]
        self._lengths = np.concatenate(lengths)
        self._first_document = np.cumsum([0] + [len(length) for length in lengths])
        self.num_tokens = int(self._lengths.sum())
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def num_blocks(self) -> int:
        """Blocks of one epoch, at least one."""
        return max(1, self.num_tokens // self._seq_length)

    def block(self, index: int) -> NDArray[np.int64]:
        """Block `index` of the endless stream, int64 [seq_length + 1]."""
        start, wanted = index * self._seq_length, self._seq_length + 1
        parts: list[NDArray[Any]] = []
        while wanted > 0:
            epoch, offset = divmod(start, self.num_tokens)
            order, starts = self._epoch(epoch)
            place = int(np.searchsorted(starts, offset, side="right")) - 1
            within = offset - int(starts[place])
            part = self._document(int(order[place]))[within : within + wanted]
            parts.append(part)
            start, wanted = start + len(part), wanted - len(part)
        block: NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        return block

    def _document(self, number: int) -> NDArray[Any]:
        shard = int(np.searchsorted(self._first_document, number, side="right")) - 1
        tokens: NDArray[Any] = self._shards[shard][number - int(self._first_document[shard])]
        return tokens

    def _draw_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The documents' order in an epoch, and where each starts in it, in tokens."""
        order = np.flatnonzero(self._lengths)  # an empty document would hide the one after it
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        ends = np.cumsum(self._lengths[order])
        return order, ends - self._lengths[order]


def has_tokens(prefix: Path) -> bool:
    """Whether a shard holds any token.

    Raises:
        ArtifactError: there is no such shard.
    """
    paths = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
    if not all(path.is_file() for path in paths):
        raise ArtifactError(f"{prefix}.bin and .idx are missing; run `python -m xelm_nemo.shard` first.")
    return paths[0].stat().st_size > 0


def _open(prefix: Path) -> Any:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))  # which cannot map an empty .bin into memory
