"""The clusters of one corpus file: the unit of work of `cluster`, for any process on any machine."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from xelm_nemo.clustering.assign import (
    Row,
    assignment_file,
    read_assignment,
    with_clusters,
    write_assignment,
)
from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
from xelm_nemo.clustering.report import NO_LANGUAGE
from xelm_nemo.corpus.bad_lines import Skipped
from xelm_nemo.corpus.documents import Document, in_blocks, read_file
from xelm_nemo.errors import ArtifactError


@dataclass(frozen=True)
class Given:
    """Clusters that other programs assigned.

    Attributes:
        folder: holds `<split>/<shard>/<file>.jsonl`, as `xelm_nemo.clustering.assign` describes them.
        remap: `from=to`: what begins an sp_id there, and what begins it here.
    """

    folder: Path
    remap: str | None


@dataclass(frozen=True)
class AssignFile:
    """One file to assign.

    Attributes:
        root: the corpus folder.
        path: the file.
        keys: of `read_file`.
        skip_bad: whether lines without a document are left out.
        clusterer: its folder.
        digest: of the clusterer.
        given: where the clusters come from instead.
        output: the folder of all assignments.
        threads: of this process, whose cores others may share; the result is the same with any number.
    """

    root: Path
    path: Path
    keys: dict[str, Any]
    skip_bad: bool
    clusterer: Path
    digest: str
    given: Given | None
    output: Path
    threads: int = 1

    @property
    def name(self) -> str:
        """The file's path from the corpus folder."""
        return self.path.relative_to(self.root).as_posix()


def assign_file(task: AssignFile) -> dict[str, Any]:
    """Write the cluster of every document of a file.

    Returns:
        JSON values: `languages`, for each cluster the number of documents by language; `skipped`, the bad
        lines.

    Raises:
        CorpusError: as `read_file`, or a document that has no cluster.
        ArtifactError: given clusters are not of this corpus.
    """
    clusterer, skipped = _load(task.clusterer, task.digest, task.threads), Skipped(task.name)
    documents = read_file(task.root, task.path, on_bad=skipped.add if task.skip_bad else None, **task.keys)
    languages = [Counter[str]() for _ in range(clusterer.num_clusters)]
    if task.given is None:
        pairs = clusterer.assigned(in_blocks(documents, lambda document: document.text))
    else:
        pairs = _given(task, clusterer, documents)

    def rows() -> Iterator[Row]:
        for document, cluster in pairs:
            languages[cluster][document.lang or NO_LANGUAGE] += 1
            yield document.sp_id, cluster

    # One thread, so that sums, and with them near ties, do not depend on how many files there are.
    with threadpool_limits(limits=1):
        write_assignment(assignment_file(task.output, task.name), rows())
    return {"languages": languages, "skipped": skipped.as_json()}


@lru_cache(maxsize=1)
def _load(folder: Path, digest: str, threads: int) -> Clusterer:
    clusterer = Clusterer.load(folder)
    if isinstance(clusterer, TfidfClusterer):
        clusterer.features.use_threads(threads)
    return clusterer


def _given(
    task: AssignFile, clusterer: Clusterer, documents: Iterable[Document]
) -> Iterator[tuple[Document, int]]:
    assert task.given is not None
    path = assignment_file(task.given.folder, task.name)
    old, _, new = (task.given.remap or "=").partition("=")
    rows = (
        (new + sp_id.removeprefix(old) if sp_id.startswith(old) else sp_id, cluster)
        for sp_id, cluster in read_assignment(path, num_clusters=clusterer.num_clusters)
    )
    first = next(rows, None)
    if first is not None and first[0].rpartition("|")[0] != task.name:
        raise ArtifactError(_foreign(path, first[0], task))
    return with_clusters(documents, chain([] if first is None else [first], rows), path)


def _foreign(path: Path, sp_id: str, task: AssignFile) -> str:
    """No document of the corpus is meant; how to say which are."""
    theirs, _, _ = sp_id.rpartition("|")
    before = theirs.removesuffix(task.name) if theirs.endswith(f"/{task.name}") else "FROM"
    after = "" if before != "FROM" else "TO"
    return (
        f"{path} matches no document of this corpus: its first sp_id is {sp_id!r}, and here that path is "
        f"{task.name!r}; set 'clustering.remap=\"{before}={after}\"'."
    )
