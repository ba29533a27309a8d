"""`cancel` and `retry`: what can be done to the models of a run that has been started."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo import log
from xelm_nemo.config.compose import compose, from_yaml
from xelm_nemo.errors import ConfigError, LaunchError
from xelm_nemo.files import write_json
from xelm_nemo.launch import slurm
from xelm_nemo.stages.claim import claimed
from xelm_nemo.stages.pipeline import make, stages_of
from xelm_nemo.stages.rows import models, open_run
from xelm_nemo.stages.run import CONFIG, Run
from xelm_nemo.stages.slurm import run_on_slurm
from xelm_nemo.stages.submit import JOBS, LAUNCH, recorded
from xelm_nemo.stages.under_way import is_alive

logger = logging.getLogger(__name__)

_FREE = ("launch.", "wait=")  # what `retry` may set anew


def cancel(arguments: Sequence[str]) -> None:
    """Cancel the SLURM jobs of the named models, or all jobs of the run.

    Raises:
        ConfigError: a name is no model's, or no such job is in the queue.
        LaunchError: SLURM does not answer.
    """
    log.set_up()
    run, names = _run_and_models(arguments)
    records, queued = recorded(run), slurm.queue()
    if records and queued is None:
        raise LaunchError("SLURM does not answer; try again when `squeue` does.")
    chosen = [
        name for name in names or records if is_alive(records.get(name), _folder(records, name), queued)
    ]
    chosen = [name for name in chosen if name in records]
    if not chosen:
        what = ", ".join(names) or "this run"
        raise ConfigError(
            f"{run.folder} has no job of {what} in SLURM's queue; a local run ends with Ctrl-C."
        )
    if not slurm.cancel([records[name]["job"] for name in chosen]):
        raise LaunchError("scancel failed; try again when `squeue` answers.")
    for name in chosen:
        records[name]["cancelled"] = time.time()
        logger.info("%s: SLURM job %s cancelled", name, records[name]["job"])
    write_json(run.folder / LAUNCH / JOBS, records)


def retry(arguments: Sequence[str]) -> None:
    """Train the named models, or all that are neither finished nor under way, as the run was started.

    Raises:
        ConfigError: a name is no model's.
        LaunchError: a job failed again.
    """
    log.set_up()
    run, names = _run_and_models(arguments)
    stages = stages_of("train", run.config)
    if run.config.launch.name == "slurm":
        return run_on_slurm(run, stages, "train", only=names)
    with claimed(run):
        make(run, stages)


def _run_and_models(arguments: Sequence[str]) -> tuple[Run, list[str]]:
    """The run that `key=value` arguments lead to, and the models that the others name."""
    names = [word for word in arguments if "=" not in word]
    folder = compose([word for word in arguments if "=" in word]).folder
    known = [job.name for job in models(open_run(folder))]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no model of {folder}; name some of {', '.join(known)}.")
    again = [word for word in arguments if word.startswith(_FREE)]
    return Run(from_yaml(folder / CONFIG, again)), names


def _folder(records: dict[str, dict[str, str]], name: str) -> Path:
    return Path(records[name]["folder"]) if name in records else Path(name)
