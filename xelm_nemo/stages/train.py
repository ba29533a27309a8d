"""Stage `train`: every expert of every round, and the baselines."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xelm_nemo.artifacts import Recipe
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json, write_json
from xelm_nemo.stages.cluster import REPORT_JSON
from xelm_nemo.stages.jobs import all_rounds, baseline_jobs, is_finished, round_jobs
from xelm_nemo.stages.rounds import rounds_of
from xelm_nemo.stages.run import SET, Run, inherited
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.training import train_all


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {job.model_folder: job.recipe() for job in round_jobs(run)}


def _make(run: Run) -> None:
    train_all(run, round_jobs(run))


def _record_set(run: Run) -> None:
    for number, jobs in enumerate(all_rounds(run)):
        write_json(run.round(number) / SET, _expert_set(run, number, jobs), only_if_changed=True)


def _expert_set(run: Run, number: int, jobs: Sequence[TrainJob]) -> dict[str, Any]:
    """The finished, up-to-date models of a round; folders are relative to that of the file.

    The last round's are the experts to mix, and those of the set that the run adds to come first.
    """
    folder, is_last = run.round(number), run.round(number) == run.experts
    rows = {row["cluster"]: row for row in read_json(run.clusters / REPORT_JSON)["clusters"]}
    experts = [
        found.row | {"model": os.path.relpath(found.model, folder.resolve())}
        for found in inherited(run).values()
    ]
    for expert, job in zip(rounds_of(run)[number], jobs, strict=True):
        if is_finished(job):
            own = [rows[k] for k in ([expert.cluster] if run.base else expert.reads)]
            experts.append(_row(job, expert.cluster, own, folder))
    baselines = {job.name: str(job.model_folder.relative_to(folder)) for job in baseline_jobs(run) if is_last}
    return {"round": number, "experts": experts, "dense": None} | baselines


def _row(job: TrainJob, cluster: int, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """What a set says of an expert: `rows` are the report's on the clusters of documents that it is for."""
    return {
        "name": job.model_folder.parent.name,
        "model": str(job.model_folder.relative_to(folder)),
        "cluster": cluster,
        "clusters": [row["cluster"] for row in rows],
        "languages": list(dict.fromkeys(language for row in rows for language in row["languages"])),
        "documents": sum(row["documents"] for row in rows),
    }


TRAIN = Stage("train", _recipes, _make, _record_set)
