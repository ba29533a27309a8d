"""Traces of chosen iterations by torch's profiler, which Perfetto and chrome://tracing open."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from xelm_nemo import device
from xelm_nemo.expert.job import TrainJob

PROFILE = "profile"  # in the job's folder


class Traces:
    """One rank's traces of `profile_iters`, each of a step and of what follows it up to the next one."""

    def __init__(self, job: TrainJob, rank: int) -> None:
        """Begin none yet."""
        self._folder, self._rank = Path(job.folder) / PROFILE, rank
        self._iterations = frozenset(job.profile_iters)
        self._under_way: tuple[int, Any] | None = None

    def turn_to(self, iteration: int) -> None:
        """End the trace under way, and begin this iteration's if it is to have one."""
        self.end()
        if iteration in self._iterations:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.has_cuda() else [])]
            profiler = torch.profiler.profile(activities=activities)
            profiler.start()
            self._under_way = iteration, profiler

    def end(self) -> None:
        """Write the trace under way, if there is one."""
        if self._under_way is None:
            return
        (iteration, profiler), self._under_way = self._under_way, None
        profiler.stop()  # which waits for the device
        path = self._folder / f"iter_{iteration:07d}_rank{self._rank}.json.gz"
        part = path.with_name(f".{path.name}")  # of the same ending, for torch goes by that
        self._folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(part))
        part.replace(path)
