"""Going back to an earlier checkpoint, `checkpoint.resume_at`, without losing the later ones too early.

They are set aside, `checkpoints/after_<n>/`, until a checkpoint later than <n> is whole. It happens once for
each time that the setting is given: a job that SLURM starts again goes on from its newest checkpoint.
"""

import re
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import CHECKPOINTS, TrainJob
from xelm_nemo.files import read_json, remove, write_json

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
    there = _iterations(folder, "iter")
    if wanted not in there:
        raise ConfigError(
            f"checkpoint.resume_at={wanted}: {job.name} has checkpoints of {sorted(there)}; use one of them, "
            "and training.train_clusters to choose the experts that go back."
        )
    artifacts.check(there[wanted], "checkpoint")
    aside = folder / f"after_{wanted:07d}"
    for iteration in [n for n in there if n > wanted]:
        aside.mkdir(exist_ok=True)
        remove(aside / there[iteration].name)
        there[iteration].rename(aside / there[iteration].name)
    write_json(done, wanted)


def forget_later(job: TrainJob) -> None:
    """Delete what was set aside, once a checkpoint later than the one gone back to is whole."""
    folder = Path(job.folder) / CHECKPOINTS
    newest = max(_iterations(folder, "iter"), default=0)
    for iteration, path in _iterations(folder, "after").items():
        if iteration < newest:
            remove(path)


def _iterations(folder: Path, kind: str) -> dict[int, Path]:
    """The whole folders `<kind>_<n>` by n."""
    matches = ((re.fullmatch(rf"{kind}_(\d+)", path.name), path) for path in folder.glob(f"{kind}_*"))
    return {int(match[1]): path for match, path in matches if match}
