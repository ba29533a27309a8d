"""The experts of a run for NeMo-Run: what `nemo_run.Experiment.add` wants of each."""

from pathlib import Path
from typing import Any, NamedTuple

from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.job import JOB
from xelm_nemo.launch.nemo_run import executor_and_task
from xelm_nemo.stages.jobs import launched, round_jobs, to_train
from xelm_nemo.stages.rows import open_run


class NemoRunJob(NamedTuple):
    """One model to train; `after` is the name of another that has to finish first."""

    name: str
    executor: Any
    task: Any
    after: str | None


def nemo_run_jobs(folder: Path | str) -> list[NemoRunJob]:
    """An executor and a task for each model of a run that is missing, parents first.

    Args:
        folder: the run's, after `python -m xelm_nemo.shard` and `branch`.

    Raises:
        RunFolderError: the folder holds no run.
        ArtifactError: what the models are made from is not there yet.
        ConfigError: nemo_run is not installed.
    """
    run = open_run(Path(folder))
    todo = to_train(round_jobs(run))
    if missing := [job.name for job in todo if not (Path(job.folder) / JOB).is_file()]:
        raise ArtifactError(
            f"{folder} is not ready for {', '.join(missing)}; run `python -m xelm_nemo.shard` and "
            "then `python -m xelm_nemo.branch` with the words of the run first."
        )
    jobs = [launched(run, job, todo) for job in todo]
    return [NemoRunJob(job.name, *executor_and_task(job, run.config.launch), job.after) for job in jobs]
