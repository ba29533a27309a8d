"""Stage `cluster`: a clusterer from the training documents, and the cluster of every document."""

import dataclasses
import logging
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.clustering.assign import write_assignment
from xelm_nemo.clustering.clusterer import Clusterer, fit_clusterer
from xelm_nemo.clustering.report import NO_LANGUAGE, cluster_report, report_markdown
from xelm_nemo.files import read_json, write_atomic, write_json
from xelm_nemo.stages.languages import write_languages
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, stage_of

log = logging.getLogger(__name__)

REPORT_JSON, REPORT_MD = "report.json", "report.md"


def language_experts(run: Run) -> dict[str, int]:
    """For each language the cluster with most of its training documents, the lower of two equal ones.

    Documents without a language count for none.
    """
    most: dict[str, tuple[int, int]] = {}
    for row in read_json(run.clusters / REPORT_JSON)["clusters"]:
        for lang, count in row["languages"].items():
            if lang != NO_LANGUAGE and count > most.get(lang, (0, 0))[0]:
                most[lang] = (count, row["cluster"])
    return {lang: cluster for lang, (_, cluster) in most.items()}


def _clusterer_recipe(run: Run) -> Recipe:
    settings = run.corpus_keys() | dataclasses.asdict(run.config.clustering)
    source = run.config.clustering.source
    imported = {"source": Path(source)} if source else {}
    return Recipe("clusterer", settings, {"train": run.split("train"), **imported})


def _fit(run: Run, folder: Path) -> None:
    clusterer = fit_clusterer(list(run.documents("train")), run.config.clustering)
    clusterer.save(folder)
    write_languages(folder, clusterer)


def _clusters_recipe(run: Run) -> Recipe:
    inputs = {"clusterer": run.clusterer, "train": run.split("train"), "valid": run.split("valid")}
    return Recipe("clusters", run.corpus_keys(), inputs)


def _assign(run: Run, folder: Path) -> None:
    clusterer = Clusterer.load(run.clusterer)
    for split in ("train", "valid"):
        documents = list(run.documents(split))
        assignment = clusterer.assign(documents)
        write_assignment(folder, zip((document.sp_id for document in documents), assignment, strict=True))
        if split == "train":
            report = cluster_report(clusterer, documents, assignment)
            write_json(folder / REPORT_JSON, report)
            write_atomic(folder / REPORT_MD, report_markdown(report))


def _show(run: Run) -> None:
    log.info("cluster:\n%s", (run.clusters / REPORT_MD).read_text().rstrip())


CLUSTER = stage_of(
    "cluster",
    Product(lambda run: run.clusterer, _clusterer_recipe, _fit),
    Product(lambda run: run.clusters, _clusters_recipe, _assign),
    finish=_show,
)
