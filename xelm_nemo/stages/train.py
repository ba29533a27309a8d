"""Stage `train`: every expert of a round, and the dense baseline, from the seed model."""

from collections.abc import Mapping
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.files import write_json
from xelm_nemo.stages.jobs import round_jobs, train_all
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

SET = "set.json"  # the expert set: where the finished models are


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    return {job.model_folder: job.recipe() for job in round_jobs(run)}


def _make(run: Run) -> None:
    train_all(run, round_jobs(run))
    _write_set(run)


def _write_set(run: Run) -> None:
    """Record the finished models, paths from the folder of the file."""
    clusters = range(run.config.clustering.num_clusters)
    finished = {k: f"expert{k}/model" for k in clusters if (run.experts / f"expert{k}" / "model").is_dir()}
    experts = [{"cluster": k, "model": model, "tokens": f"cluster{k}"} for k, model in finished.items()]
    dense = "dense/model" if run.config.dense.enabled else None
    write_json(run.experts / SET, {"round": 0, "experts": experts, "dense": dense})


TRAIN = Stage("train", _recipes, _make)
