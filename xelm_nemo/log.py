"""One log format for every process, and the metrics of a run as JSON lines."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xelm_nemo.files import write_atomic

METRICS = "metrics.jsonl"
FORMAT = "%(asctime)s %(name)s: %(message)s"


def set_up(*, rank: int = 0) -> None:
    """Log to standard error: rank 0 everything, other ranks warnings. Libraries speak only of errors."""
    logging.basicConfig(format=FORMAT, datefmt="%H:%M:%S", force=True, level=logging.ERROR)
    logging.getLogger("xelm_nemo").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    warnings.simplefilter("ignore")  # the libraries' own, about packages that are optional here
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class Metrics:
    """`metrics.jsonl`: one object a line, each with its "iteration". A resumed run repeats no line."""

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """Open the file and drop what was logged after iteration `resume_at`, torn lines included."""
        self._path = path
        kept = [line for line in read_metrics(path) if line["iteration"] <= resume_at]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a last line that a kill tore; none when there is no file."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
