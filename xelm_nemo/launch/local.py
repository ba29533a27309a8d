"""Run jobs as processes of this machine, as many at once as its devices allow."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from xelm_nemo.errors import LaunchError

LOG = "train.log"
LAUNCHER = "XELM_LAUNCHER_PID"  # tells a worker whose death is its own
_POLL_SECONDS = 0.2
_LAST_LINES = 3
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """A Python module to run on some ranks; `python -m <module> <folder>` on each.

    Attributes:
        name: for people.
        module: the worker.
        folder: its only argument, and where its log goes.
        num_ranks: processes that work together.
    """

    name: str
    module: str
    folder: Path
    num_ranks: int = 1


@dataclass
class _Running:
    job: Job
    slot: int
    log_start: int  # the log is appended to: what earlier runs said is not this one's
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def exit_code(self) -> int | None:
        """0 once all ranks are done, the first bad code once one failed, None while they run."""
        codes = [rank.poll() for rank in self.ranks]
        failed = [code for code in codes if code]
        return failed[0] if failed else (None if None in codes else 0)

    def stop(self) -> None:
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.wait()


def run_jobs(
    jobs: Sequence[Job], *, max_parallel: int, gpus: int, on_tick: Callable[[], None] = lambda: None
) -> None:
    """Run all jobs, in order, `max_parallel` at once; a failed one does not stop the others.

    Args:
        jobs: what to run.
        max_parallel: jobs at once.
        gpus: CUDA devices of the machine, shared out to the slots; 0 on a CPU.
        on_tick: called a few times a second, to show progress.

    Raises:
        LaunchError: names the jobs that failed and the last lines of their logs.
    """
    waiting, running, failed = list(jobs), list[_Running](), list[str]()
    try:
        while waiting or running:
            free = sorted(set(range(max_parallel)) - {r.slot for r in running})
            while waiting and free:
                running.append(_start(waiting.pop(0), free.pop(0), gpus))
            time.sleep(_POLL_SECONDS)
            for one in [one for one in running if one.exit_code() is not None]:
                if one.exit_code() != 0:
                    failed.append(_last_words(one))
                one.stop()
                running.remove(one)
            on_tick()
    finally:
        for one in running:
            one.stop()
    if failed:
        raise LaunchError("; ".join(failed))


def die_with_launcher() -> None:
    """Have the kernel kill this process when the launcher dies.

    Without it a training run that nobody waits for would go on writing beside the one that took its
    place. Does nothing in a process that no launcher started, or where there is no such kernel.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        die_with(int(launcher))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent process dies, where there is such a kernel."""
    if sys.platform != "linux":
        return
    with suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _start(job: Job, slot: int, gpus: int) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    port = _free_port() if job.num_ranks > 1 else 0
    with (job.folder / LOG).open("ab") as log:
        running = _Running(job, slot, log_start=log.tell())
        for rank in range(job.num_ranks):
            environment = os.environ | _environment(job, slot, rank, port, gpus)
            command = [sys.executable, "-m", job.module, str(job.folder)]
            running.ranks.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
    return running


def _environment(job: Job, slot: int, rank: int, port: int, gpus: int) -> dict[str, str]:
    """torchrun's variables, the slot's devices, and what Megatron asks of CUDA's queues."""
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.num_ranks)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getpid())}
    variables |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
    if gpus:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else [str(device) for device in range(gpus)]
        first = slot * job.num_ranks
        own = [devices[device % gpus] for device in range(first, first + job.num_ranks)]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return variables


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_words(running: _Running) -> str:
    """Why a job failed: its own error line, or else the end of its log and how it ended."""
    job, log = running.job, running.job.folder / LOG
    said = log.read_bytes()[running.log_start :].decode(errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if errors:
        return f"{job.name} failed ({log}): {errors[-1].removeprefix('error: ')}"
    return f"{job.name} {_ending(running.exit_code())} ({log}): {' | '.join(lines[-_LAST_LINES:])}"


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"failed with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
