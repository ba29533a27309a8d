"""Jobs on a cluster that fails, preempts and keeps one waiting: when the last of them is done.

A discrete-event simulation. Jobs are alike and need nothing of each other. Each waits in the queue, takes so
many of the GPUs that there are, starts, works, and may be interrupted: a failure throws it back to its last
checkpoint, a preemption to nothing. Then it comes back, behind those that have become ready before it. Each
job draws from its own generator, so that what befalls it does not depend on the others.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np

from xelm_nemo.simulation.rates import Rates

_HOUR = 3600.0


@dataclass(frozen=True)
class Jobs:
    """Some jobs that are alike. Times are in seconds.

    Attributes:
        number: of jobs.
        gpus: of each.
        work: of each, undisturbed.
        save_every: work between two checkpoints.
    """

    number: int
    gpus: int
    work: float
    save_every: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """What came of it: seconds until the last job was done, and interruptions of all jobs."""

    makespan: float
    failures: int = 0
    preemptions: int = 0


def simulate(jobs: Jobs, rates: Rates, *, gpus: int, seed: int) -> Outcome:
    """One course of events.

    Args:
        jobs: at least one of which fits into `gpus`.
        rates: of the cluster.
        gpus: that may be used at once.
        seed: the same seed gives the same course.
    """
    lives = [_Life(jobs, rates, np.random.default_rng([seed, number])) for number in range(jobs.number)]
    ready = [(life.queued(), number) for number, life in enumerate(lives)]
    free = [0.0] * (gpus // jobs.gpus)  # when each place for a job is free
    assert free, "no job fits"
    heapq.heapify(ready)
    makespan = 0.0
    while ready:
        since, number = heapq.heappop(ready)
        ended, again = lives[number].run(max(since, heapq.heappop(free)))
        heapq.heappush(free, ended)
        if again is None:
            makespan = max(makespan, ended)
        else:
            heapq.heappush(ready, (again, number))
    return Outcome(makespan, sum(life.failures for life in lives), sum(life.preemptions for life in lives))


class _Life:
    """One job from its submission to its end."""

    def __init__(self, jobs: Jobs, rates: Rates, random: np.random.Generator) -> None:
        self._jobs, self._rates, self._random = jobs, rates, random
        self._failure_rate = rates.failures_per_gpu_hour * jobs.gpus / _HOUR
        self._preemption_rate = rates.preemptions_per_job_hour / _HOUR
        self._done, self.failures, self.preemptions = 0.0, 0, 0

    def queued(self) -> float:
        """How long it waits in the queue this time."""
        return self._random.exponential(self._rates.queue_seconds(self._jobs.gpus))

    def run(self, start: float) -> tuple[float, float | None]:
        """Run from a time on: until when, and when it is ready to run again, None if it is done."""
        failure, preemption = self._next(self._failure_rate), self._next(self._preemption_rate)
        needed = self._rates.start_seconds + self._jobs.work - self._done
        if needed <= min(failure, preemption):
            return start + needed, None
        lasted = min(failure, preemption)
        reached = self._done + max(0.0, lasted - self._rates.start_seconds)
        again = start + lasted + self._rates.requeue_seconds
        if failure < preemption:
            self.failures += 1
            saved = reached - reached % self._jobs.save_every
            self._done = max(self._done, saved)  # where a preemption saved it, there is a checkpoint too
            return start + lasted, again
        self.preemptions += 1
        self._done = reached
        return start + lasted, again + self.queued()

    def _next(self, rate: float) -> float:
        return self._random.exponential(1 / rate) if rate else math.inf
