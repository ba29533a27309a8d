"""What is asked of a simulation on the command line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.simulation.compare import compare
from xelm_nemo.simulation.rates import read_rates
from xelm_nemo.simulation.report import draw, print_json, print_table


@dataclass(frozen=True)
class Request:
    """One simulation."""

    rates: Path
    gpus: list[int]
    courses: int = 100
    seed: int = 1
    plot: Path | None = None
    as_json: bool = False

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """From `key=value` words.

        Raises:
            ConfigError: one is missing, or its value cannot be.
        """
        if bare := [word for word in words if "=" not in word]:
            raise ConfigError(f"{bare[0]!r} has no value; write {bare[0]}=VALUE.")
        given = dict(word.split("=", 1) for word in words)
        if missing := [key for key in ("rates", "gpus") if not given.get(key)]:
            raise ConfigError(
                f"{' and '.join(missing)} must be set, such as rates=docs/rates.json gpus=16,64,256."
            )
        if given.get("json", "true") != "true":
            raise ConfigError(f"json={given['json']!r} is not known; use json=true, or leave it out.")
        return cls(
            Path(given["rates"]),
            [_number("gpus", value, 1) for value in given["gpus"].strip("[]").split(",")],
            _number("courses", given.get("courses", "100"), 1),
            _number("seed", given.get("seed", "1"), 0),
            _picture(given["plot"]) if "plot" in given else None,
            "json" in given,
        )


def answer(config: RunConfig, request: Request) -> None:
    """Simulate, print, and draw.

    Raises:
        ConfigError: as `compare` and `read_rates`.
        ArtifactError: there is no file of rates.
    """
    rates = read_rates(request.rates)
    found = compare(config, rates, request.gpus, courses=request.courses, seed=request.seed)
    (print_json if request.as_json else print_table)(found)
    if request.plot:
        title = f"{config.name}: {config.clustering.num_clusters} experts, or a dense model of equal tokens"
        draw(request.plot, found, title)


def _picture(value: str) -> Path:
    """Seen to now: a simulation may take long, and its picture comes last."""
    path = Path(value)
    opened = path if path.exists() else path.parent
    if (
        path.suffix.lower() != ".png"
        or path.is_dir()
        or not path.parent.is_dir()
        or not os.access(opened, os.W_OK)
    ):
        raise ConfigError(
            f"plot={value!r} cannot be written; give a file named .png in a folder that is there."
        )
    return path


def _number(key: str, value: str, least: int) -> int:
    if not value.strip().isdecimal() or int(value) < least:
        raise ConfigError(f"{key}={value!r} must be a whole number, {least} or more.")
    return int(value)
