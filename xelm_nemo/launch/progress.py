"""How far running jobs are: bars on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from xelm_nemo.log import read_metrics

_LOOK_SECONDS = 0.5


@dataclass
class _Seen:
    iteration: int = 0
    loss: float = float("nan")
    pace: float = 0.0


class TrainingProgress:
    """Follows the metrics files of jobs; call `tick` often.

    On a terminal each job has a bar with loss, tokens per second and time left. Elsewhere a plain line is
    printed for each that its training logs, but no more than one in half a second.
    """

    def __init__(self, totals: Mapping[str, tuple[Path, int, int]]) -> None:
        """Take, for each job's name, its metrics file, its iterations and its tokens per iteration."""
        self._totals = totals
        self._seen = {name: _Seen() for name in totals}
        self._looked = 0.0
        self._console = Console(file=sys.stderr)
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=self._console,
        )

    def __enter__(self) -> "TrainingProgress":
        """Show the bars."""
        if self._console.is_terminal:
            self._bars = {
                n: self._progress.add_task(n, total=t[1], said="waiting") for n, t in self._totals.items()
            }
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the last state and leave the bars standing."""
        self._looked = 0.0
        self.tick()
        if self._bars:
            self._progress.stop()

    def tick(self) -> None:
        """Read the metrics again if it is time, and show what is new."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for name in self._totals:
            if self._read(name):
                self._show(name)

    def _read(self, name: str) -> bool:
        lines = [line for line in read_metrics(self._totals[name][0]) if "loss" in line]
        if not lines or lines[-1]["iteration"] == self._seen[name].iteration:
            return False
        last = lines[-1]
        self._seen[name] = _Seen(last["iteration"], last["loss"], last["tokens_per_second"])
        return True

    def _show(self, name: str) -> None:
        seen, (_, total, tokens) = self._seen[name], self._totals[name]
        left = (total - seen.iteration) * tokens / max(seen.pace, 1e-9)
        said = f"loss {seen.loss:.3f}, {seen.pace:,.0f} tokens/s, {_minutes(left)} left"
        if self._bars:
            self._progress.update(self._bars[name], completed=seen.iteration, said=said)
        else:
            self._console.print(f"{name} {seen.iteration}/{total}: {said}", highlight=False)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
