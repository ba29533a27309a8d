"""How long one step takes, the memory it needs, and what the GPU says of itself meanwhile."""

import ctypes
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from xelm_nemo import device
from xelm_nemo.errors import first_line

WARM_UPS = 2
TIMED_STEPS = 3
STEADY = 1.1  # p80 / p20 above it is no measurement
Row = dict[str, Any]

SM_CLOCK = 1  # NVML_CLOCK_SM
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons that make a figure one of this minute, not of the card.
SLOWED_BY = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


def take_turn(step: Callable[[], None]) -> Row:
    """Times of steps that follow each other without a pause, after warm-ups from an empty cache, ms.

    With them, on a GPU: its state during the last step, and how often the steps asked the driver for memory.
    """
    device.release()
    for _ in range(WARM_UPS):
        step()
    if not device.has_cuda():
        return {"times_ms": [_milliseconds(step) for _ in range(TIMED_STEPS)]}
    events = [torch.cuda.Event(enable_timing=True) for _ in range(TIMED_STEPS + 1)]  # type: ignore[no-untyped-call]
    requests = torch.cuda.memory_stats()["num_device_alloc"]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    requests = torch.cuda.memory_stats()["num_device_alloc"] - requests
    state = gpu_state()  # before the wait, while the last step is still at work
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) for begin, end in itertools.pairwise(events)]
    return {"times_ms": times, "requests": requests, **state}


def take_job(step: Callable[[], None], clock: Callable[[], float] | None) -> Row:
    """Milliseconds of one step without warm-ups, by a clock of seconds; None: the wall's, work awaited."""
    return {"times_ms": [_milliseconds(_waited_for(step) if clock is None else step, clock)]}


def failure(error: Exception) -> str:
    """What a row says of a provider that could not run."""
    return f"{type(error).__name__}: {first_line(error):.100}"


def _waited_for(step: Callable[[], None]) -> Callable[[], None]:
    if not device.has_cuda():
        return step
    torch.cuda.synchronize()

    def whole() -> None:
        step()
        torch.cuda.synchronize()

    return whole


def peak_gib(step: Callable[[], None]) -> float | None:
    """The most memory that a step holds beyond what was there before, GiB; None on a CPU."""
    if not device.has_cuda():
        step()
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def summary(turns: Sequence[Row]) -> Row:
    """Quantiles over the steps of all turns, the GPU's median state, and what speaks against the figures."""
    times = [time_ms for turn in turns for time_ms in turn["times_ms"]]
    if len(times) == 1:
        times *= 2  # quantiles of one time are that time
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    row: Row = {"p20_ms": deciles[1], "p50_ms": deciles[4], "p80_ms": deciles[7]}
    for key in ("clock_mhz", "watts"):
        if found := [turn[key] for turn in turns if key in turn]:
            row[key] = statistics.median(found)
    notes = {reason for turn in turns for reason in turn.get("slowed_by", ())}
    if row["p80_ms"] > STEADY * row["p20_ms"]:
        notes.add("unsteady")
    if any(turn.get("processes", 0) > 1 for turn in turns):
        notes.add("GPU shared")
    if any(turn.get("requests", 0) for turn in turns):
        notes.add("asked for memory")
    if notes:
        row["notes"] = ", ".join(sorted(notes))
    return row


def gpu_state() -> Row:
    """SM clock (MHz), power (W, mean of a second), what slows the GPU, its processes; empty without NVML."""
    ask = _nvml()
    if ask is None:
        return {}
    clock, milliwatts, processes = (ctypes.c_uint() for _ in range(3))
    reasons = ctypes.c_ulonglong()
    ask["ClockInfo"](SM_CLOCK, ctypes.byref(clock))
    ask["PowerUsage"](ctypes.byref(milliwatts))
    ask["CurrentClocksThrottleReasons"](ctypes.byref(reasons))
    ask["ComputeRunningProcesses_v3"](ctypes.byref(processes), None)  # room for none: NVML says how many
    return {
        "clock_mhz": clock.value,
        "watts": milliwatts.value / 1e3,
        "slowed_by": {name for bit, name in SLOWED_BY.items() if reasons.value & bit},
        "processes": processes.value,
    }


@functools.cache
def _nvml() -> dict[str, Callable[..., int]] | None:
    """What the driver's management library can be asked about this process's GPU."""
    names = ("ClockInfo", "PowerUsage", "CurrentClocksThrottleReasons", "ComputeRunningProcesses_v3")
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        functions = {name: getattr(library, f"nvmlDeviceGet{name}") for name in names}
    except (OSError, AttributeError):
        return None
    handle = ctypes.c_void_p()
    # By UUID: CUDA_VISIBLE_DEVICES renumbers what CUDA sees, not what NVML sees.
    uuid = f"GPU-{torch.cuda.get_device_properties(device.device()).uuid}".encode()
    failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
    return None if failed else {name: functools.partial(ask, handle) for name, ask in functions.items()}


def _milliseconds(step: Callable[[], None], clock: Callable[[], float] | None = None) -> float:
    clock = clock or time.perf_counter
    start = clock()
    step()
    return (clock() - start) * 1e3
