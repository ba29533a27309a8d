"""The cluster of each document on disk: `<folder>/<split>/<shard>/<file>.jsonl`, mirroring the corpus.

A line is `{"sp_id": "<split>/<shard>/<file>|<line>", "cluster": k}`, as upstream writes it but for the path,
which starts at the corpus folder.
"""

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import write_atomic


def write_assignment(folder: Path, rows: Iterable[tuple[str, int]]) -> None:
    """Write (sp_id, cluster) rows, one file for each corpus file; rows of one file come together."""
    written = set()
    for name, group in groupby(rows, key=lambda row: row[0].rpartition("|")[0]):
        assert name not in written, f"the rows of {name} do not come together"
        written.add(name)
        lines = (json.dumps({"sp_id": sp_id, "cluster": int(cluster)}) + "\n" for sp_id, cluster in group)
        write_atomic(folder / name, "".join(lines))


def read_assignment(folder: Path, split: str, *, num_clusters: int | None = None) -> dict[str, int]:
    """The cluster of each document of a split, by sp_id; escaped slashes (`\\/`) are understood.

    Args:
        folder: what `write_assignment` was given.
        split: for example "train".
        num_clusters: where given, clusters must be below it.

    Raises:
        ArtifactError: no such files; or, with `file:line`, a line that is not such a row, a cluster that is
            not an integer in range, or a document that comes twice.
    """
    paths = sorted((folder / split).rglob("*.jsonl"))
    if not paths:
        raise ArtifactError(
            f"{folder / split} holds no assignment of documents to clusters; run `cluster` first."
        )
    cluster_of: dict[str, int] = {}
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    sp_id, cluster = _parse(line, num_clusters)
                    if sp_id in cluster_of:
                        raise ValueError(f"assigns {sp_id!r} a second time")
                except ValueError as error:
                    raise ArtifactError(
                        f"{path}:{number} {error}; delete {folder} and run `cluster` again."
                    ) from error
                cluster_of[sp_id] = cluster
    return cluster_of


def _parse(line: bytes, num_clusters: int | None) -> tuple[str, int]:
    """sp_id and cluster of a line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
        sp_id, cluster = row["sp_id"], row["cluster"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'is not {{"sp_id": "<path>|<line>", "cluster": k}} ({error!r:.80})') from error
    if not isinstance(sp_id, str) or type(cluster) is not int:
        raise ValueError(f"has sp_id={sp_id!r}, cluster={cluster!r}, not a string and an integer")
    if cluster < 0 or (num_clusters is not None and cluster >= num_clusters):
        raise ValueError(
            f"has cluster={cluster}, not in 0 to {num_clusters - 1 if num_clusters else 'K - 1'}"
        )
    return sp_id, cluster
