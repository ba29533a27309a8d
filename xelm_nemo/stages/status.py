"""The table of a run's models, on the screen or as JSON."""

import contextlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from xelm_nemo import lock
from xelm_nemo.stages.rows import UNDER_WAY, Row, open_run, rows
from xelm_nemo.stages.run import Run

_WATCH_SECONDS = 1.0
_WORDS = ("model", "job", "state", "node", "reason")  # columns of words; numbers stand at the right
_REASON_CHARS = 60
_FILE_COLUMNS = 160  # of a screen that is none


def show_status(folder: Path, *, watch: bool = False, as_json: bool = False) -> None:
    """Print a line for every model of the run.

    Args:
        folder: the run folder.
        watch: go on until interrupted.
        as_json: a list of objects, one a model; with `watch` one list a line.

    Raises:
        RunFolderError: the folder holds no run.
    """
    run, console = open_run(folder), Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    if not watch:
        return _print_json(run) if as_json else console.print(_table(run))
    with contextlib.nullcontext() if as_json else Live(console=console, auto_refresh=False) as live:
        while True:
            if live is None:
                _print_json(run)
            else:
                live.update(_table(run), refresh=True)
            time.sleep(_WATCH_SECONDS)


def _table(run: Run) -> Table:
    found = rows(run)
    works = lock.is_held(run.folder) or any(one.state in UNDER_WAY for one in found)
    table = Table(title=f"{run.folder}: {'running' if works else 'not running'}")
    shown = [_cells(one) for one in found]
    for heading in [key for key in shown[0] if any(cells[key] for cells in shown)]:
        table.add_column(heading, justify="left" if heading in _WORDS else "right")
    for cells in shown:
        table.add_row(*(cells[str(column.header)] or "-" for column in table.columns))
    return table


def _cells(one: Row) -> dict[str, str]:
    """A row as text; a column where nothing stands is left out."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    ended = ", ".join(f"{count} {reason}" for reason, count in one.ended.items())
    return {
        "model": one.model,
        "job": one.job or "",
        "state": one.state,
        "step": f"{one.step}/{one.steps}",
        "loss": number(one.loss, ".3f"),
        "valid loss": number(one.valid_loss, ".3f"),
        "tokens/s": number(one.tokens_per_second, ",.0f"),
        "last checkpoint": f"{number(one.checkpoint_age, '.0f')} s ago"
        if one.checkpoint_age is not None
        else "",
        "node": (one.node or "") if one.job else "",
        "restarts": f"{one.restarts} ({ended})" if one.restarts else "",
        "reason": one.reason[:_REASON_CHARS],
    }


def _print_json(run: Run) -> None:
    sys.stdout.write(json.dumps([asdict(one) for one in rows(run)]) + "\n")
    sys.stdout.flush()
