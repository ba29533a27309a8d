"""Token shards: every document tokenised once, into one Megatron `.bin/.idx` pair a cluster."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xelm_nemo.corpus.tokenizer import encode_document
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from xelm_nemo.corpus.jsonl import Document

COUNTS = "counts.json"  # what the shards of a folder hold


def shard_prefix(folder: Path, cluster: int, split: str) -> Path:
    """Where the shard of a cluster is; `.bin` and `.idx` follow."""
    return folder / f"cluster{cluster}" / split


def write_token_shards(
    documents: Iterable["Document"],
    cluster_of: Mapping[str, int],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_clusters: int,
    split: str,
    folder: Path,
) -> list[dict[str, int]]:
    """Tokenise a split and write each document to its cluster's shard, in corpus order.

    Returns:
        For each cluster, its number of documents and of tokens.

    Raises:
        ArtifactError: a document has no cluster; upstream drops such documents without a word.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path

    prefixes = [str(shard_prefix(folder, cluster, split)) for cluster in range(num_clusters)]
    for prefix in prefixes:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(len(tokenizer))
    builders = [IndexedDatasetBuilder(get_bin_path(prefix), dtype=dtype) for prefix in prefixes]
    counts = [{"documents": 0, "tokens": 0} for _ in prefixes]
    for document in documents:
        if document.sp_id not in cluster_of:
            raise ArtifactError(
                f"document {document.sp_id} has no cluster; run "
                "`python -m xelm_nemo.cluster` on this corpus again."
            )
        cluster = cluster_of[document.sp_id]
        tokens = encode_document(tokenizer, document.text)
        builders[cluster].add_document(np.array(tokens, dtype=dtype), [len(tokens)])
        counts[cluster]["documents"] += 1
        counts[cluster]["tokens"] += len(tokens)
    for builder, prefix in zip(builders, prefixes, strict=True):
        builder.finalize(get_idx_path(prefix))
    return counts


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
