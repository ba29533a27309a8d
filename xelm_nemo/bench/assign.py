"""Documents to cluster ids, against upstream's chain with the same clusterer.

Upstream parses a line, makes tf-idf rows with scikit-learn, multiplies, normalises, and measures distances
with all differences in memory. "chain" begins with texts in memory, "files" with JSON lines, and ends with
the files of clusters. The seconds are those that cores worked for the process; two threads are timed by the
clock. Of every file the first documents are taken, up to 5 MB; a clusterer is fitted on 20,000 of them at
most.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from xelm_nemo.bench.corpora import jsonl_files, texts_of
from xelm_nemo.bench.featurise import upstream_pipeline
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.clustering.assign import write_assignment
from xelm_nemo.clustering.clusterer import TfidfClusterer, fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.documents import Document, in_blocks, read_file
from xelm_nemo.errors import ConfigError

VERBS = ("chain", "files")
_DOCUMENTS_A_BLOCK = 10_000  # of upstream
_FITTED_ON = 20_000  # documents
Texts = Callable[[list[str]], list[int]]


@dataclass
class Inputs:
    """The documents, in files and in memory, the clusterer, and the clusters of each provider's last step.

    Attributes:
        folder: holds the files, and is gone with this.
        files: of the corpus, cut off.
        texts: of these files.
        clusterer: the same for all.
        expected: the baseline's clusters.
        last: those of the last step.
    """

    folder: Any
    files: list[Path]
    texts: list[str]
    clusterer: TfidfClusterer
    expected: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)


def make_inputs(sizes: Sizes) -> Inputs:
    """The first documents of a corpus and a clusterer for it.

    Raises:
        ConfigError: there is no such corpus or verb, or it has fewer documents than clusters.
    """
    if sizes["verb"] not in VERBS:
        raise ConfigError(f"verb={sizes['verb']!r} is not one; use one of {sorted(VERBS)}.")
    folder = TemporaryDirectory()
    files, texts = [], list[str]()
    for path in jsonl_files(sizes["corpus"], Path(folder.name)):
        found = list(texts_of(path))
        cut = Path(folder.name, "cut", path.name)
        cut.parent.mkdir(exist_ok=True)
        with path.open("rb") as lines, cut.open("wb") as out:
            out.writelines(itertools.islice(lines, len(found)))
        files.append(cut)
        texts += found
    some = [Document(str(i), text, None) for i, text in enumerate(texts)][:: len(texts) // _FITTED_ON + 1]
    clusterer = fit_clusterer(some, ClusteringConfig(num_clusters=sizes["clusters"]))
    assert isinstance(clusterer, TfidfClusterer)
    return Inputs(folder, files, texts, clusterer)


def _upstream(clusterer: TfidfClusterer) -> Texts:
    """Texts to clusters as `cluster.py` does it."""
    pipeline = upstream_pipeline(clusterer, "word")
    centroids = torch.from_numpy(clusterer.centroids)

    def assign(texts: list[str]) -> list[int]:
        vectors = torch.from_numpy(pipeline.transform(texts)).float()
        distances = ((vectors[:, None] - centroids) ** 2).sum(-1)
        return distances.argmin(1).tolist()

    return assign


def _upstream_files(assign: Texts, inputs: Inputs) -> list[int]:
    def rows(path: Path) -> Iterator[tuple[str, int]]:
        with path.open(encoding="utf-8") as lines:
            numbered = enumerate(lines)
            while block := list(itertools.islice(numbered, _DOCUMENTS_A_BLOCK)):
                clusters = assign([json.loads(line)["text"] for _, line in block])
                yield from ((f"{path}|{number}", k) for (number, _), k in zip(block, clusters, strict=True))

    return _written(inputs, rows)


def _our_files(inputs: Inputs) -> list[int]:
    def rows(path: Path) -> Iterator[tuple[str, int]]:
        documents = read_file(path.parent, path, id_key=None)  # upstream looks at no id either
        for document, cluster in inputs.clusterer.assigned(in_blocks(documents, lambda d: d.text)):
            yield document.sp_id, cluster

    return _written(inputs, rows)


def _written(inputs: Inputs, rows: Callable[[Path], Iterator[tuple[str, int]]]) -> list[int]:
    """The clusters of all files, which are written on the way."""
    clusters: list[int] = []

    def kept(path: Path) -> Iterator[tuple[str, int]]:
        for sp_id, cluster in rows(path):
            clusters.append(cluster)
            yield sp_id, cluster

    for path in inputs.files:
        write_assignment(path.with_suffix(".clusters"), kept(path))
    return clusters


def _step(inputs: Inputs, threads: int, work: Callable[[], list[int]]) -> None:
    inputs.clusterer.features.use_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with threadpool_limits(limits=threads):
        inputs.last = work()
    torch.set_num_threads(before)


def providers(sizes: Sizes) -> list[Provider]:
    """Upstream's chain, and ours with one thread and with two."""
    is_chain = sizes["verb"] == "chain"

    def upstream(inputs: Inputs) -> Callable[[], None]:
        assign = _upstream(inputs.clusterer)
        work = partial(assign, inputs.texts) if is_chain else partial(_upstream_files, assign, inputs)
        return partial(_step, inputs, 1, work)

    def ours(inputs: Inputs, *, threads: int) -> Callable[[], None]:
        documents = [Document(str(i), text, None) for i, text in enumerate(inputs.texts)]
        work = partial(inputs.clusterer.assign, documents) if is_chain else partial(_our_files, inputs)
        return partial(_step, inputs, threads, work)

    return [
        Provider("upstream", upstream, clock=process_time, facts=facts),
        Provider("ours", partial(ours, threads=1), clock=process_time, facts=facts),
        Provider("ours_2_threads", partial(ours, threads=2), clock=perf_counter, facts=facts),
    ]


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """The share of documents that are not in the baseline's cluster."""
    inputs.expected = inputs.expected or inputs.last
    differing = sum(a != b for a, b in zip(inputs.expected, inputs.last, strict=True))
    return {"clusters": differing / len(inputs.last)}


def facts(inputs: Inputs) -> dict[str, Any]:
    """How much text it was."""
    num_bytes = sum(len(text.encode()) for text in inputs.texts)
    return {"bytes": num_bytes, "documents": len(inputs.texts), "terms": len(inputs.clusterer.features.terms)}


CASE = Case(
    name="assign",
    sizes={"corpus": ("udhr",), "clusters": (16,), "verb": VERBS},
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    is_job=True,
)
