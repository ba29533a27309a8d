"""What is known of a cluster and of a model's speed on it: a JSON file, checked key by key."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xelm_nemo.errors import ConfigError
from xelm_nemo.files import read_json

Table = Mapping[int, float]  # by number of GPUs
_NOTE = "note"  # a key for people


@dataclasses.dataclass(frozen=True)
class Rates:
    """Means; what lies between two numbers of GPUs is interpolated over their logarithm.

    Attributes:
        tokens_per_second: of one GPU that trains alone.
        efficiency: what is left of that for each of so many GPUs that train one model.
        queue_minutes: that a job of so many GPUs waits before it starts; exponential.
        start_seconds: from the start of a job to its first step.
        requeue_seconds: from an interruption until the job may start again.
        failures_per_gpu_hour: that end a job, which then goes on from its last checkpoint.
        preemptions_per_job_hour: that it is saved at, and after which it waits in the queue again.
    """

    tokens_per_second: float
    efficiency: Table = dataclasses.field(default_factory=lambda: {1: 1.0})
    queue_minutes: Table = dataclasses.field(default_factory=lambda: {1: 0.0})
    start_seconds: float = 0.0
    requeue_seconds: float = 0.0
    failures_per_gpu_hour: float = 0.0
    preemptions_per_job_hour: float = 0.0

    def tokens_a_second(self, gpus: int) -> float:
        """Of so many GPUs together on one model."""
        return self.tokens_per_second * gpus * _at(self.efficiency, gpus)

    def queue_seconds(self, gpus: int) -> float:
        """The mean wait of a job of so many GPUs."""
        return 60 * _at(self.queue_minutes, gpus)


def read_rates(path: Path) -> Rates:
    """The rates in a file.

    Raises:
        ArtifactError: it is missing, or no JSON.
        ConfigError: a key is unknown or missing, or a value cannot be.
    """
    values = read_json(path)
    known = [field.name for field in dataclasses.fields(Rates)]
    if not isinstance(values, dict) or "tokens_per_second" not in values:
        raise ConfigError(
            f"rates={str(path)!r} has no tokens_per_second; write what one GPU was measured at."
        )
    if unknown := sorted(values.keys() - {*known, _NOTE}):
        raise ConfigError(f"rates={str(path)!r} has {unknown}, which are no rates; use some of {known}.")
    tables = {field.name for field in dataclasses.fields(Rates) if field.type is Table}
    read: dict[str, Any] = {
        key: _table(path, key, value) if key in tables else _number(path, key, value)
        for key, value in values.items()
        if key != _NOTE
    }
    rates = Rates(**read)
    if rates.tokens_per_second <= 0 or not all(0 < share <= 1 for share in rates.efficiency.values()):
        raise ConfigError(
            f"rates={str(path)!r}: tokens_per_second has to be above 0, and efficiency above 0 and at most 1."
        )
    return rates


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"rates={str(path)!r}: {key}={value!r} must be a number, 0 or more.")
    return float(value)


def _table(path: Path, key: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or not value or not all(str(gpus).isdecimal() for gpus in value):
        raise ConfigError(
            f'rates={str(path)!r}: {key}={value!r} must be numbers by number of GPUs, such as {{"1": 1.0}}.'
        )
    table = {int(gpus): _number(path, key, number) for gpus, number in value.items()}
    if min(table) < 1:
        raise ConfigError(f"rates={str(path)!r}: {key} has a value for 0 GPUs; begin with 1.")
    return dict(sorted(table.items()))


def _at(table: Table, gpus: int) -> float:
    """Between two entries by the logarithm of the number; beyond the ends as there."""
    return float(np.interp(math.log(gpus), [math.log(number) for number in table], list(table.values())))
