"""Token shards: every document tokenised once, into one Megatron `.bin/.idx` pair a cluster.

Each corpus file is tokenised into pieces, one a cluster, by itself, for any process on any machine; then the
pieces of a cluster are joined in the order of the files. So the order of a cluster's documents is the
corpus's, whatever ran where.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.assign import assignment_file, read_assignment, with_clusters
from xelm_nemo.corpus.bad_lines import Skipped
from xelm_nemo.corpus.documents import Document, in_blocks, read_file
from xelm_nemo.corpus.encode import DocumentEncoder
from xelm_nemo.corpus.examples import num_source_tokens
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import atomic_file, read_json, room_for, write_json
from xelm_nemo.shards.index import write_index
from xelm_nemo.shards.sources import write_sources

COUNTS = "counts.json"  # what the shards of a folder hold
_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class TokeniseFile:
    """One corpus file to tokenise.

    Attributes:
        root: the corpus folder.
        path: the file.
        keys: of `read_file`.
        skip_bad: whether lines without a document are left out.
        clusters: the folder of all assignments.
        num_clusters: how many there are.
        tokenizer: its folder.
        digest: of the tokenizer.
        pieces: the folder for what is made of this file.
    """

    root: Path
    path: Path
    keys: dict[str, Any]
    skip_bad: bool
    clusters: Path
    num_clusters: int
    tokenizer: Path
    digest: str
    pieces: Path


@dataclass(frozen=True)
class JoinPieces:
    """The pieces of one cluster, in order, and the shard to make of them.

    Attributes:
        pieces: folders of pieces, some of which may have none of the cluster.
        cluster: its number.
        dtype: of the ids, such as "uint16".
        prefix: of the shard; see `shard_prefix`.
    """

    pieces: Sequence[Path]
    cluster: int
    dtype: str
    prefix: Path


def tokenise_file(task: TokeniseFile) -> dict[str, Any]:
    """Write `<cluster>.bin` and `<cluster>.lengths` of a file's documents, for clusters that have any.

    Of instruction data also `<cluster>.sources`.

    Returns:
        JSON values: `counts`, of each cluster its `documents` and `tokens`; and `skipped`, the bad lines.

    Raises:
        CorpusError: as `read_file`.
        ArtifactError: as `with_clusters`; upstream drops documents without a cluster in silence.
    """
    encoder = load_encoder(task.tokenizer, task.digest)
    name = task.path.relative_to(task.root).as_posix()
    skipped, assigned = Skipped(name), assignment_file(task.clusters, name)
    documents = read_file(task.root, task.path, on_bad=skipped.add if task.skip_bad else None, **task.keys)
    rows = read_assignment(assigned, num_clusters=task.num_clusters)
    shutil.rmtree(task.pieces, ignore_errors=True)
    task.pieces.mkdir(parents=True)
    counts = [{"documents": 0, "tokens": 0} for _ in range(task.num_clusters)]
    with room_for(task.pieces), ExitStack() as files:
        pieces = _Pieces(task.pieces, files)
        pairs = with_clusters(documents, rows, assigned)
        for block in in_blocks(pairs, lambda pair: pair[0].text):
            clusters = np.array([cluster for _, cluster in block])
            encoded = encoder.encode([document.text for document, _ in block])
            lengths = np.array([len(ids) for ids in encoded]) // encoder.itemsize
            sources = _count_sources([document for document, _ in block], lengths, encoder)
            for cluster in np.unique(clusters).tolist():
                own = np.flatnonzero(clusters == cluster)
                numbers = {"lengths": lengths[own]} | ({} if sources is None else {"sources": sources[own]})
                pieces.add(cluster, b"".join(encoded[n] for n in own), **numbers)
                counts[cluster]["documents"] += len(own)
                counts[cluster]["tokens"] += int(lengths[own].sum())
    return {"counts": counts, "skipped": skipped.as_json()}


def _count_sources(
    documents: Sequence[Document], lengths: NDArray[Any], encoder: DocumentEncoder
) -> NDArray[Any] | None:
    """Source tokens of each document of instruction data, given its tokens; None of other documents."""
    sources = [document.source for document in documents if document.source is not None]
    if not sources:
        return None
    alone = np.array([len(ids) for ids in encoder.encode(sources)]) // encoder.itemsize
    counts: NDArray[Any] = num_source_tokens(lengths, alone)
    return counts


class _Pieces:
    """The open files of a folder of pieces; all is on disk when the stack that closes them has."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._open: dict[str, BinaryIO] = {}

    def add(self, cluster: int, ids: bytes, **numbers: NDArray[Any]) -> None:
        """Append documents to the piece of a cluster, and of each document its numbers."""
        self._file(f"{cluster}.bin").write(ids)
        for name, values in numbers.items():
            self._file(f"{cluster}.{name}").write(values.astype(np.int32).tobytes())

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            file = self._files.enter_context((self._folder / name).open("wb"))
            self._files.callback(_sync, file)
            self._open[name] = file
        return self._open[name]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def join_pieces(task: JoinPieces) -> None:
    """Write a cluster's shard from its pieces, in their order."""
    paths = [folder / f"{task.cluster}.bin" for folder in task.pieces]
    paths = [path for path in paths if path.is_file()]
    with atomic_file(task.prefix.with_name(task.prefix.name + ".bin")) as shard:
        for path in paths:
            with path.open("rb") as piece:
                shutil.copyfileobj(piece, shard, _COPY_BYTES)
    lengths = _joined(paths, ".lengths")
    write_index(task.prefix.with_name(task.prefix.name + ".idx"), lengths, np.dtype(task.dtype))
    if any(path.with_suffix(".sources").is_file() for path in paths):
        write_sources(task.prefix, _joined(paths, ".sources"))


def _joined(paths: Sequence[Path], suffix: str) -> NDArray[np.int32]:
    numbers = [np.fromfile(path.with_suffix(suffix), dtype=np.int32) for path in paths]
    return np.concatenate([np.zeros(0, dtype=np.int32), *numbers])


@lru_cache(maxsize=1)
def load_encoder(folder: Path, digest: str) -> DocumentEncoder:
    """The tokenizer of a folder with this digest; the last one stays loaded."""
    tokenizer = load_tokenizer(folder)
    return DocumentEncoder(tokenizer, token_dtype(len(tokenizer)))


def shard_prefix(folder: Path, cluster: int, split: str) -> Path:
    """Where the shard of a cluster is; `.bin` and `.idx` follow."""
    return folder / f"cluster{cluster}" / split


def write_counts(folder: Path, vocab_size: int, counts: Mapping[str, Sequence[Mapping[str, int]]]) -> None:
    """Record what the shards hold: the size of their tokenizer, and what each split has in each cluster."""
    write_json(folder / COUNTS, {"vocab_size": vocab_size, **counts})


def read_vocab_size(folder: Path) -> int:
    """The number of ids of the tokenizer that made the shards.

    Raises:
        ArtifactError: it is not recorded.
    """
    counts = read_json(folder / COUNTS)
    if "vocab_size" not in counts:
        raise ArtifactError(
            f"{folder / COUNTS} has no vocab_size, so another version made it; delete {folder} and run again."
        )
    return int(counts["vocab_size"])


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """The narrowest integer that Megatron's format has for ids below `vocab_size`."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max else np.int32


def total(counts: Sequence[Mapping[str, int]], key: str) -> int:
    """The sum over clusters of one of the counts."""
    return sum(count[key] for count in counts)
