"""What the simulation found, as a table, as JSON and as a picture."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xelm_nemo.simulation.compare import Comparison, Hours, Side

_FILE_COLUMNS = 120  # of a screen that is none
_BLUE, _ORANGE = "#0072B2", "#E69F00"  # Okabe and Ito's, which colour-blind readers tell apart


def print_table(found: Sequence[Comparison]) -> None:
    """Print a line for each size of cluster."""
    table = Table()
    side = ("GPUs each", "hours", "stops")
    for heading in ("GPUs", *side, *side, "dense / experts"):
        table.add_column(heading, no_wrap=heading == "hours", justify="right")
    for one in found:
        ratio = one.dense.hours.mean / one.experts.hours.mean
        table.add_row(str(one.gpus), *_cells(one.experts), *_cells(one.dense), f"{ratio:.2f}")
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    console.print(table)
    console.print("The first three columns after the GPUs are of the experts, the next of the dense model;")
    console.print("hours are a mean and what nine of ten courses lie between, stops those of all jobs.")


def print_json(found: Sequence[Comparison]) -> None:
    """Print a list of objects, one for each size of cluster."""
    sys.stdout.write(json.dumps([asdict(one) for one in found]) + "\n")


def draw(path: Path, found: Sequence[Comparison], title: str) -> None:
    """Draw hours by number of GPUs, both axes logarithmic, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(6.4, 4.0))
    FigureCanvasAgg(figure)
    axes, gpus = figure.add_subplot(), [one.gpus for one in found]
    sides = {
        "experts": (_BLUE, [one.experts for one in found]),
        "one dense model": (_ORANGE, [one.dense for one in found]),
    }
    for name, (color, side) in sides.items():
        axes.plot(gpus, [one.hours.mean for one in side], "o-", color=color, label=name, markersize=4)
        low, high = [one.hours.low for one in side], [one.hours.high for one in side]
        axes.fill_between(gpus, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(gpus, [one.undisturbed for one in side], "--", color=color, linewidth=1)
    axes.plot([], [], "--", color="grey", linewidth=1, label="undisturbed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(gpus)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="GPUs", ylabel="hours until all is trained")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})


def _cells(side: Side) -> list[str]:
    return [str(side.gpus), _hours(side.hours), f"{side.interruptions:.1f}"]


def _hours(hours: Hours) -> str:
    return f"{hours.mean:,.1f} ({hours.low:,.1f}-{hours.high:,.1f})"
