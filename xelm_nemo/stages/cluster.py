"""Stage `cluster`: a clusterer from the training documents, and the cluster of every document."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts, device
from xelm_nemo.artifacts import Recipe
from xelm_nemo.clustering.clusterer import Clusterer, fit_clusterer
from xelm_nemo.clustering.newcomers import with_newcomers
from xelm_nemo.clustering.report import NO_LANGUAGE, cluster_report, report_markdown
from xelm_nemo.corpus.documents import Document
from xelm_nemo.corpus.layout import list_files
from xelm_nemo.files import WORK, read_json, write_atomic, write_json
from xelm_nemo.launch import pool
from xelm_nemo.stages.assignment import AssignFile, Given, assign_file
from xelm_nemo.stages.languages import write_languages
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, stage_of

log = logging.getLogger(__name__)

_ALL = slice(None)
REPORT_JSON, REPORT_MD = "report.json", "report.md"


def language_experts(run: Run) -> dict[str, int]:
    """For each language the cluster with most of its training documents, the lower of two equal ones.

    Documents without a language count for none. Languages that the run adds to a finished set have their own
    expert, and those of the set keep theirs.
    """
    if run.base is not None:
        return language_experts(run.base) | new_clusters(run)
    most: dict[str, tuple[int, int]] = {}
    for row in read_json(run.clusters / REPORT_JSON)["clusters"]:
        for lang, count in row["languages"].items():
            if lang != NO_LANGUAGE and count > most.get(lang, (0, 0))[0]:
                most[lang] = (count, row["cluster"])
    return {lang: cluster for lang, (_, cluster) in most.items()}


def new_clusters(run: Run) -> dict[str, int]:
    """The cluster of each language that a run adds to a finished set."""
    return dict(zip(run.config.rounds.languages or [], run.config.own_clusters, strict=True))


def clusterer_recipe(run: Run) -> Recipe:
    """What a clusterer is made from: the training split, or the shards that it is to be fitted on."""
    if run.base is not None:
        settings = run.corpus_keys() | {"languages": list(new_clusters(run))}
        return Recipe("clusterer", settings, {"base": run.base.clusterer, "train": run.split("train")})
    fitted = dataclasses.replace(run.config.clustering, assignment=None, remap=None)
    settings = run.corpus_keys() | dataclasses.asdict(fitted)
    shards = run.config.clustering.fit_shards
    inputs = {"train": run.split("train")} if shards is None else {name: run.corpus / name for name in shards}
    if fitted.source is not None:
        inputs["source"] = Path(fitted.source)
    return Recipe("clusterer", settings, inputs)


def fit(run: Run, folder: Path) -> None:
    """Fit a clusterer on these documents, or add new languages to a finished set's, and save it."""
    if run.base is None:
        clusterer = fit_clusterer(_Fitted(run), run.config.clustering)
    else:
        clusterer = with_newcomers(Clusterer.load(run.base.clusterer), list(new_clusters(run)), _Fitted(run))
    clusterer.save(folder)
    write_languages(folder, clusterer)


@dataclasses.dataclass
class _Fitted:
    """The documents to fit a clusterer on, read anew each time; bad lines are told of once."""

    run: Run
    was_read: bool = False

    def __iter__(self) -> Iterator[Document]:
        shards, quiet = self.run.config.clustering.fit_shards, self.was_read
        if shards is None:
            yield from self.run.documents("train", quiet=quiet)
        for shard in shards or ():
            yield from self.run.shard(shard, quiet=quiet)
        self.was_read = True


def _clusters_recipe(run: Run) -> Recipe:
    inputs = {"clusterer": run.clusterer, "train": run.split("train"), "valid": run.split("valid")}
    given = run.config.clustering.assignment
    if given is None:
        return Recipe("clusters", run.corpus_keys(), inputs)
    settings = run.corpus_keys() | {"remap": run.config.clustering.remap}
    return Recipe("clusters", settings, inputs | {"assignment": Path(given)})


def _assign(run: Run, folder: Path) -> None:
    rows, num_train = _assign_files(run, folder), len(list_files(run.corpus, run.split_name("train")))
    languages = [row["languages"] for row in rows[:num_train]]
    report = cluster_report(Clusterer.load(run.clusterer), languages, [row["skipped"] for row in rows])
    write_json(folder / REPORT_JSON, report)
    write_atomic(folder / REPORT_MD, report_markdown(report))


def _assign_files(run: Run, folder: Path, some: slice = _ALL) -> list[dict[str, Any]]:
    """What `assign_file` says of each file, or of some, those for training first."""
    clustering, digest = run.config.clustering, artifacts.check(run.clusterer, "clusterer")["digest"]
    given = Given(Path(clustering.assignment), clustering.remap) if clustering.assignment else None
    paths = [path for split in ("train", "valid") for path in list_files(run.corpus, run.split_name(split))]
    paths = paths[some]
    processes = max(1, min(run.processes(paths), len(paths)))
    keys, threads = run.corpus_keys(), max(1, device.cores() // processes)
    tasks = [
        AssignFile(run.corpus, path, keys, run.skip_bad, run.clusterer, digest, given, folder, threads)
        for path in paths
    ]
    names = {task.name: task for task in tasks}
    return list(pool.results(assign_file, names, folder / WORK, processes=processes))


def _share(run: Run, folder: Path, some: slice) -> None:
    _assign_files(run, folder, some)


def _show(run: Run) -> None:
    log.info("cluster:\n%s", (run.clusters / REPORT_MD).read_text().rstrip())


CLUSTER = stage_of(
    "cluster",
    Product(lambda run: run.clusterer, clusterer_recipe, fit),
    Product(lambda run: run.clusters, _clusters_recipe, _assign, resumable=True, share=_share),
    finish=_show,
)
