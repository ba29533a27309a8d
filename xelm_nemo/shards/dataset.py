"""Training sequences as a pure function of (seed, index): what exact resume and any layout rest on."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.errors import ArtifactError
from xelm_nemo.shards.sources import read_sources


class _Part(NamedTuple):
    """Tokens start to stop of a document."""

    document: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


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
        sources = [read_sources(prefix) for prefix in prefixes if has_tokens(prefix)]
        self._sources = [of_shard for of_shard in sources if of_shard is not None]
        assert len(self._sources) in (0, len(sources)), "shards of one corpus are all of one kind"
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def num_blocks(self) -> int:
        """Blocks of one epoch, at least one."""
        return max(1, self.num_tokens // self._seq_length)

    @property
    def has_sources(self) -> bool:
        """Whether the documents are instruction data, of which only targets are learned."""
        return bool(self._sources)

    def block(self, index: int) -> NDArray[np.int64]:
        """Block `index` of the endless stream, int64 [seq_length + 1]."""
        parts = [self._document(part.document)[part.start : part.stop] for part in self._parts(index)]
        block: NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        return block

    def is_target(self, index: int) -> NDArray[np.bool_]:
        """Which tokens of a block but the first are learned, bool [seq_length]: with sources, not these."""
        if not self._sources:
            return np.ones(self._seq_length, dtype=np.bool_)
        learned = [
            np.arange(part.start, part.stop) >= self._num_source_tokens(part.document)
            for part in self._parts(index)
        ]
        return np.concatenate(learned)[1:]

    def positions(self, index: int) -> NDArray[np.int64]:
        """Where in its document each token of a block but the last is, int64 [seq_length].

        A document that is cut at the border of blocks begins anew.
        """
        counted: NDArray[np.int64] = np.concatenate([np.arange(part.length) for part in self._parts(index)])
        return counted[: self._seq_length]

    def _parts(self, index: int) -> Iterator[_Part]:
        """The parts of documents that a block is made of."""
        position, wanted = index * self._seq_length, self._seq_length + 1
        while wanted > 0:
            epoch, offset = divmod(position, self.num_tokens)
            order, starts = self._epoch(epoch)
            place = int(np.searchsorted(starts, offset, side="right")) - 1
            document, start = int(order[place]), offset - int(starts[place])
            part = _Part(document, start, min(start + wanted, int(self._lengths[document])))
            yield part
            position, wanted = position + part.length, wanted - part.length

    def _document(self, number: int) -> NDArray[Any]:
        shard, within = self._place(number)
        tokens: NDArray[Any] = self._shards[shard][within]
        return tokens

    def _num_source_tokens(self, number: int) -> int:
        shard, within = self._place(number)
        return int(self._sources[shard][within])

    def _place(self, number: int) -> tuple[int, int]:
        """The shard of a document, and its number there."""
        shard = int(np.searchsorted(self._first_document, number, side="right")) - 1
        return shard, number - int(self._first_document[shard])

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
