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

from xelm_nemo.command import AGAIN
from xelm_nemo.errors import LaunchError, Stopped
from xelm_nemo.launch import signals
from xelm_nemo.launch.job import LOG, VARIABLES, Job, last_words, record_end

LAUNCHER = "XELM_LAUNCHER_PID"  # tells a worker whose death is its own
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass
class _Running:
    job: Job
    slot: int
    log_start: int  # the log is appended to: what earlier runs said is not this one's
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def exit_code(self) -> int | None:
        """The first bad code once a rank failed, 0 or AGAIN once all ranks are done, else None."""
        codes = [rank.poll() for rank in self.ranks]
        failed = [code for code in codes if code not in (None, 0, AGAIN)]
        done = None if None in codes else max(code or 0 for code in codes)
        return failed[0] if failed else done

    def send(self, name: str) -> None:
        for rank in self.ranks:
            rank.send_signal(signal.Signals[name])

    def say_where(self) -> None:
        """Have ranks that wait for one that failed write to the log where they stand."""
        waiting = [rank for rank in self.ranks if rank.poll() is None]
        for rank in waiting:
            rank.send_signal(signal.SIGQUIT)
        if waiting:
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.wait()


def run_jobs(
    jobs: Sequence[Job],
    *,
    max_parallel: int,
    gpus: int,
    on_tick: Callable[[], None] = lambda: None,
    stop_signals: Sequence[str] = signals.DEFAULT,
) -> None:
    """Run all jobs, in order, `max_parallel` at once; a failed one stops only those that come after it.

    A job that a signal stopped, and that saved itself, is started again. When the signal comes to this
    process, it goes to all jobs, and none is started any more.

    Args:
        jobs: what to run.
        max_parallel: jobs at once.
        gpus: CUDA devices of the machine, shared out to the slots; 0 on a CPU.
        on_tick: called a few times a second, to show progress.
        stop_signals: names of the signals that ask to stop.

    Raises:
        LaunchError: names the jobs that failed and the last lines of their logs.
        Stopped: a signal came; what ran has been saved.
    """
    waiting, running, failed, told = list(jobs), list[_Running](), dict[str, str](), False
    try:
        with signals.caught(stop_signals) as stop:
            while (waiting and not stop) or running:
                free = sorted(set(range(max_parallel)) - {r.slot for r in running})
                while free and not stop and (job := _next(waiting, running, failed)):
                    waiting.remove(job)
                    with signals.blocked(stop_signals):  # the worker unblocks them when it can take them
                        running.append(_start(job, free.pop(0), gpus))
                if stop.signal and not told:
                    told = True
                    for one in running:
                        one.send(stop.signal)
                time.sleep(_POLL_SECONDS)
                for one in [one for one in running if one.exit_code() is not None]:
                    running.remove(one)
                    problem = _finish(one)
                    failed |= {one.job.name: problem} if problem else {}
                    waiting += [one.job] if one.exit_code() == AGAIN else []
                on_tick()
    finally:
        for one in running:
            one.stop()
    if failed:
        raise LaunchError("; ".join(failed.values()))
    if waiting:
        raise Stopped(f"stopped by {stop.signal}; what ran is saved, and the same command goes on")


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


def _next(waiting: list[Job], running: list[_Running], failed: dict[str, str]) -> Job | None:
    """The first job that need not wait for another; those that wait for one that failed have failed too."""
    for job in list(waiting):
        if job.after in failed:
            waiting.remove(job)
            failed[job.name] = f"{job.name} was not begun, for {job.after} failed"
    under_way = {job.name for job in [*waiting, *(one.job for one in running)]}
    return next((job for job in waiting if job.after not in under_way), None)


def _start(job: Job, slot: int, gpus: int) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    port = _free_port() if job.num_ranks > 1 else 0
    with (job.folder / LOG).open("ab") as log:
        running = _Running(job, slot, log_start=log.tell())
        for rank in range(job.num_ranks):
            environment = os.environ | _environment(job, slot, rank, port, gpus)
            command = [sys.executable, *job.words]
            running.ranks.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
    return running


def _finish(running: _Running) -> str | None:
    """Take leave of a job whose end has come; what there is to say about it, if it failed."""
    code, job = running.exit_code(), running.job
    if code not in (0, AGAIN):
        running.say_where()
    running.stop()
    if not code or code == AGAIN:
        return None
    record_end(job.folder, code, lambda state: state.pid == running.ranks[0].pid)
    how, said = last_words(job.folder, code, running.log_start)
    return f"{job.name} {how} ({job.folder / LOG}): {said}"


def _environment(job: Job, slot: int, rank: int, port: int, gpus: int) -> dict[str, str]:
    """torchrun's variables, the slot's devices, and what Megatron asks of CUDA's queues."""
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.num_ranks)}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), LAUNCHER: str(os.getpid())}
    variables |= VARIABLES
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
