"""A model's run on Weights & Biases: one, however often its training is started again.

W&B keeps what it was told. So a training that goes on from a checkpoint says nothing of what an earlier
attempt has told, where its values are the same anyway.
"""

import dataclasses
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.files import read_json, write_json
from xelm_nemo.launch import signals

log = logging.getLogger(__name__)

WANDB = "wandb.json"  # in the job's folder: the run's id, and the last iteration told of each kind of line


class WandbRun:
    """The run of one job; rank 0 has it."""

    def __init__(self, job: TrainJob) -> None:
        """Begin the run, or go on with it.

        Raises:
            ConfigError: W&B does not answer, or wants a login, and never was told of this training.
        """
        import wandb

        self._path = Path(job.folder) / WANDB
        self._told: dict[str, Any] = {"id": uuid.uuid4().hex}
        if self._path.is_file():
            self._told = read_json(self._path)
        write_json(self._path, self._told, only_if_changed=True)
        try:
            with signals.blocked(job.stop_signals):  # W&B's own process is to outlive them
                self._run: Any = wandb.init(
                    project=job.wandb_project,
                    name=job.name,
                    id=self._told["id"],
                    resume="allow",
                    dir=job.folder,
                    config=dataclasses.asdict(job),
                    settings=wandb.Settings(console="off"),  # train.log has it
                )
        except wandb.Error as error:
            if len(self._told) > 1:  # it has answered before, and a training is worth more than its picture
                log.warning(
                    "%s goes on without Weights & Biases (%s); metrics.jsonl has its lines", job.name, error
                )
                self._run = None
                return
            raise ConfigError(
                f"training.wandb_project={job.wandb_project!r}: {error}; log in with `wandb login`, or set "
                "WANDB_MODE=offline and send the run later with `wandb sync`."
            ) from error
        self._run.define_metric("*", step_metric="iteration")

    def show(self, line: Mapping[str, float]) -> None:
        """Tell a line of metrics that was not told before."""
        kind, iteration = "valid_loss" if "valid_loss" in line else "loss", line["iteration"]
        if self._run is None or iteration <= self._told.get(kind, 0):
            return
        # First: a kill in between leaves a point out, and doubles none.
        self._told[kind] = iteration
        write_json(self._path, self._told)
        self._run.log(dict(line))
