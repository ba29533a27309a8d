"""Stage `train`: every expert of a round, and the dense baseline, from the seed model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.files import read_json, write_json
from xelm_nemo.stages.cluster import REPORT_JSON
from xelm_nemo.stages.jobs import UPCYCLED, dense_job, expert_job, round_jobs, train_all, upcycled_job
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

SET = "set.json"  # the expert set: which finished model is for which cluster


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {job.model_folder: job.recipe() for job in round_jobs(run)}


def _make(run: Run) -> None:
    train_all(run, round_jobs(run))


def _record_set(run: Run) -> None:
    write_json(run.experts / SET, _expert_set(run), only_if_changed=True)


def _expert_set(run: Run) -> dict[str, Any]:
    """The finished, up-to-date models; folders are relative to that of the file."""
    rows = {row["cluster"]: row for row in read_json(run.clusters / REPORT_JSON)["clusters"]}
    jobs = [expert_job(run, cluster) for cluster in rows]
    experts = [
        {
            "name": job.name,
            "model": str(job.model_folder.relative_to(run.experts)),
            "cluster": job.clusters[0],
            "languages": list(rows[job.clusters[0]]["languages"]),
            "documents": rows[job.clusters[0]]["documents"],
        }
        for job in jobs
        if artifacts.is_current(job.model_folder, job.recipe())
    ]
    dense = dense_job(run).model_folder.relative_to(run.experts) if run.config.dense.enabled else None
    models = {"round": 0, "experts": experts, "dense": str(dense) if dense else None}
    if run.config.upcycle.enabled:
        models[UPCYCLED] = str(upcycled_job(run).model_folder.relative_to(run.experts))
    return models


TRAIN = Stage("train", _recipes, _make, _record_set)
