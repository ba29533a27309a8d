"""The cluster of each document on disk: `<folder>/<split>/<shard>/<file>.jsonl`, mirroring the corpus.

A line is `{"sp_id": "<split>/<shard>/<file>|<line>", "cluster": k}`, as upstream writes it but for the path,
which starts at the corpus folder. Files are written and read line by line, in the order of the documents.
"""

import json
from collections.abc import Iterable, Iterator
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TypeVar

from xelm_nemo.clustering.documents import ClusterableDocument
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import atomic_file

Row = tuple[str, int]
D = TypeVar("D", bound=ClusterableDocument)


def assignment_file(folder: Path, name: str) -> Path:
    """Where the clusters of a corpus file are, given its path from the corpus folder."""
    return folder / (name if name.endswith(".jsonl") else f"{name}.jsonl")


def write_assignment(path: Path, rows: Iterable[Row]) -> None:
    """Write the (sp_id, cluster) rows of one corpus file, all or nothing."""
    with atomic_file(path) as file:
        for sp_id, cluster in rows:
            # What json.dumps makes of the two, which takes several times as long.
            file.write(f'{{"sp_id": {encode_basestring_ascii(sp_id)}, "cluster": {int(cluster)}}}\n'.encode())


def read_assignment(path: Path, *, num_clusters: int) -> Iterator[Row]:
    """The (sp_id, cluster) rows of one corpus file; escaped slashes (`\\/`) are understood.

    Raises:
        ArtifactError: there is no such file; or, with `file:line`, a line that is not such a row, or a
            cluster that is not an integer below `num_clusters`.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _parse(line, num_clusters)
                except ValueError as error:
                    raise ArtifactError(f"{path}:{number} {error}; make the file again.") from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); it should hold the cluster of each document."
        ) from error


def with_clusters(documents: Iterable[D], rows: Iterable[Row], path: Path) -> Iterator[tuple[D, int]]:
    """Each document with its cluster; rows of other documents between them are passed over.

    Upstream drops a document without a row in silence, so that a path that is spelt otherwise makes the
    corpus vanish.

    Args:
        documents: of one corpus file, in order.
        rows: of the same file, in the same order.
        path: of the rows, for the message.

    Raises:
        ArtifactError: a document has no row.
    """
    remaining, last = iter(rows), None
    for document in documents:
        for sp_id, cluster in remaining:
            last = sp_id
            if sp_id == document.sp_id:
                yield document, cluster
                break
        else:
            held = f"its last row is {last!r}" if last else "it has no row that is left"
            raise ArtifactError(f"{path} has no cluster for the document {document.sp_id!r} ({held}).")


def _parse(line: bytes, num_clusters: int) -> Row:
    """sp_id and cluster of a line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
        sp_id, cluster = row["sp_id"], row["cluster"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'is not {{"sp_id": "<path>|<line>", "cluster": k}} ({error!r:.80})') from error
    if not isinstance(sp_id, str) or type(cluster) is not int:
        raise ValueError(f"has sp_id={sp_id!r}, cluster={cluster!r}, not a string and an integer")
    if not 0 <= cluster < num_clusters:
        raise ValueError(f"has cluster={cluster}, not in 0 to {num_clusters - 1}")
    return sp_id, cluster
