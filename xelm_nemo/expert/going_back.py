"""Going back to an earlier checkpoint, `checkpoint.resume_at`, without losing the later ones too early.

They are set aside, `checkpoints/after_<n>/`, until a checkpoint later than <n> is whole. It happens once for
each time that the setting is given: a job that SLURM starts again goes on from its newest checkpoint.
"""

from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.checkpoint.iterations import iteration_folder, iteration_folders
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import CHECKPOINTS, TrainJob
from xelm_nemo.expert.wandb_run import WANDB
from xelm_nemo.files import read_json, remove, write_json

_LATER = "after"
_DONE = "resumed_at.json"  # in the job's folder: the iteration that was gone back to


def go_back(job: TrainJob) -> None:
    """Set aside what is later than the checkpoint to go on from, unless that has been done.

    Raises:
        ConfigError: there is no such checkpoint.
        ArtifactError: it is not whole.
    """
    folder, done, wanted = Path(job.folder) / CHECKPOINTS, Path(job.folder) / _DONE, job.resume_at
    if wanted is None:
        return remove(done)
    if done.is_file() and read_json(done) == wanted:
        return
    there = iteration_folders(folder)
    if wanted not in there:
        raise ConfigError(
            f"checkpoint.resume_at={wanted}: {job.name} has checkpoints of {list(there)}; use one of them, "
            "and training.train_clusters to choose the experts that go back."
        )
    artifacts.check(there[wanted], "checkpoint")
    aside = iteration_folder(folder, wanted, _LATER)
    for iteration in [n for n in there if n > wanted]:
        aside.mkdir(exist_ok=True)
        remove(aside / there[iteration].name)
        there[iteration].rename(aside / there[iteration].name)
    remove(Path(job.folder) / WANDB)  # what it was told of later iterations may come out otherwise now
    write_json(done, wanted)


def forget_later(job: TrainJob) -> None:
    """Delete what was set aside, once a checkpoint later than the one gone back to is whole."""
    folder = Path(job.folder) / CHECKPOINTS
    newest = max(iteration_folders(folder), default=0)
    for iteration, path in iteration_folders(folder, _LATER).items():
        if iteration < newest:
            remove(path)
