"""How far a run is, read from its folder alone; nothing is asked of the processes that work on it."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xelm_nemo import artifacts, lock
from xelm_nemo.config.compose import from_yaml
from xelm_nemo.errors import ArtifactError, RunFolderError
from xelm_nemo.expert.job import CHECKPOINTS, TrainJob
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.stages.jobs import dense_job, expert_job, seed_job
from xelm_nemo.stages.run import CONFIG, Run

_HEADINGS = ("model", "state", "step", "loss", "valid loss", "tokens/s", "last checkpoint")


def show_status(folder: Path) -> None:
    """Print a line for every model of the run.

    Raises:
        RunFolderError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise RunFolderError(f"{folder} holds no run; give output=DIR or the +experiment that started it.")
    run = Run(from_yaml(folder / CONFIG))
    jobs = [seed_job(run)] if run.config.seed_model.train_iters else []
    table = Table(title=f"{folder}: {'running' if lock.is_held(folder) else 'not running'}")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("model", "state") else "right")
    jobs += [dense_job(run)] if run.config.dense.enabled else []
    jobs += [expert_job(run, cluster) for cluster in range(run.config.clustering.num_clusters)]
    for job in jobs:
        table.add_row(*_row(job))
    Console().print(table)


def _row(job: TrainJob) -> list[str]:
    folder = Path(job.folder)
    lines = read_metrics(folder / METRICS)
    last = {key: value for line in lines for key, value in line.items()}  # of each key the newest
    step = f"{last.get('iteration', 0)}/{job.train_iters}"
    shown = [f"{last[key]:{form}}" if key in last else "-" for key, form in _SHOWN.items()]
    return [job.name, _state(job, started=bool(lines)), step, *shown, _age(folder / CHECKPOINTS)]


_SHOWN = {"loss": ".3f", "valid_loss": ".3f", "tokens_per_second": ",.0f"}


def _state(job: TrainJob, *, started: bool) -> str:
    if lock.is_held(Path(job.folder)):
        return "running"
    if job.model_folder.is_dir():
        return "finished" if _is_current(job) else "out of date"
    return "stopped" if started else "waiting"


def _is_current(job: TrainJob) -> bool:
    try:
        return artifacts.is_current(job.model_folder, job.recipe())
    except ArtifactError:  # what it was made from is being made again
        return False


def _age(checkpoints: Path) -> str:
    times = [path.stat().st_mtime for path in checkpoints.glob("iter_*")]
    return f"{int(time.time() - max(times))} s ago" if times else "-"
