"""Measures a case: every provider takes a turn a round, after each was run and checked alone."""

import gc
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xelm_nemo import device, parallel
from xelm_nemo.bench.registry import Case, Provider, Request, Sizes, load
from xelm_nemo.bench.timing import WARM_UPS, Row, failure, peak_gib, summary, take_job, take_turn
from xelm_nemo.errors import ConfigError


def run(request: Request) -> None:
    """Measure what is asked for and show every shape's table as soon as it is known."""
    cases = [load(name) for name in request.cases]
    known = {key for case in cases for key in case.sizes}
    if unknown := sorted(set(request.sizes) - known):
        raise ConfigError(f"{unknown[0]}: no such size; use one of {sorted(known)}.")
    with parallel.model_parallel(alone=True, threads=device.cores()):
        machine = _machine()
        sys.stdout.write(" ".join(f"{key}={value}" for key, value in machine.items()) + "\n")
        for case in cases:
            for sizes in _combinations(case, request.sizes):
                rows = [{**sizes, **row, **machine} for row in measure(case, sizes, request)]
                sys.stdout.write(_table(case.name, sizes, rows))
                sys.stdout.flush()
                if request.json is not None:
                    _append(request.json, rows)


def measure(case: Case, sizes: Sizes, request: Request) -> list[Row]:
    """One row a provider."""
    inputs = case.inputs(sizes)
    chosen = [p for p in case.providers(sizes) if request.only is None or p.name in request.only]
    rows: list[Row] = [{"case": case.name, "provider": provider.name} for provider in chosen]
    steps: dict[int, Callable[[], None]] = {}
    for index, provider in enumerate(chosen):
        step = _first_run(case, provider, inputs, rows[index])
        if step is not None:
            steps[index] = step
    turns: dict[int, list[Row]] = {index: [] for index in steps}
    for _ in range(request.rounds):
        for index, step in steps.items():
            if case.is_job:
                turns[index].append(take_job(chosen[index].prepare(inputs), chosen[index].clock))
            else:
                turns[index].append(take_turn(step))
    for index, taken in turns.items():
        rows[index] |= _speed(chosen[index], taken, rows[index].get("bytes", 0))
    _add_ratios(rows, case.floor)
    return rows


def _add_ratios(rows: list[Row], floor: str | None) -> None:
    measured = [row for row in rows if "p50_ms" in row]
    for row in measured:
        row["speed_up"] = measured[0]["p50_ms"] / row["p50_ms"]
        for other in measured:
            if other["provider"] == floor:
                row["share_of_floor"] = other["p50_ms"] / row["p50_ms"]


def _first_run(case: Case, provider: Provider, inputs: Any, row: Row) -> Callable[[], None] | None:
    """Prepare, warm up and check a provider; a peer that cannot run says so in its row and is left out."""
    try:
        step = provider.prepare(inputs)
        for _ in range(1 if case.is_job else WARM_UPS):
            peak = peak_gib(step)
        if case.errors is not None:
            row["errors"] = case.errors(inputs, step)
        if provider.facts is not None:
            row |= provider.facts(inputs)
    except Exception as error:  # whatever a peer may raise: the others are to be measured nonetheless
        row["failed"] = failure(error)
        step = None
    else:
        row["extra_gib"] = peak
    gc.collect()
    device.release()
    return step


def _speed(provider: Provider, turns: list[Row], num_bytes: float) -> Row:
    row = summary(turns)
    if provider.flops:
        row["tflops"] = provider.flops / row["p50_ms"] / 1e9
    if num_bytes := provider.num_bytes or num_bytes:
        row["gb_per_s"] = num_bytes / row["p50_ms"] / 1e6
    return row


def _combinations(
    case: Case, asked: Mapping[str, Sequence[int] | Sequence[str]]
) -> Iterator[dict[str, int | str]]:
    sizes = {key: asked.get(key, default) for key, default in case.sizes.items()}
    for values in itertools.product(*sizes.values()):
        yield dict(zip(sizes, values, strict=True))


COLUMNS = {
    "provider": "{}",
    "p20_ms": "{:.2f}",
    "p50_ms": "{:.2f}",
    "p80_ms": "{:.2f}",
    "tflops": "{:.0f}",
    "gb_per_s": "{:.4g}",
    "clock_mhz": "{:.0f}",
    "watts": "{:.0f}",
    "extra_gib": "{:.2f}",
    "speed_up": "{:.2f}",
    "share_of_floor": "{:.2f}",
    "notes": "{}",
    "errors": "{}",
}


def _table(name: str, sizes: Sizes, rows: list[Row]) -> str:
    shown = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [shown, *([_cell(key, row) for key in shown] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(shown))]
    title = f"\n{name} " + " ".join(f"{key}={value}" for key, value in sizes.items())
    body = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([title, *(line.rstrip() for line in body)]) + "\n"


def _cell(key: str, row: Row) -> str:
    if key == "errors":
        errors = " ".join(f"{name} {error:.1e}" for name, error in row.get("errors", {}).items())
        return str(row.get("failed", errors))
    return COLUMNS[key].format(row[key]) if row.get(key) is not None else "-"


def _machine() -> Row:
    import triton

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "device": device.names()[0].replace(" ", "_") if device.has_cuda() else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def _append(path: Path, rows: list[Row]) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
