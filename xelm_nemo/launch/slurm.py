"""SLURM from inside a job and from a prompt: its variables, its queue, and jobs put back into it.

Only squeue, scontrol and scancel are asked, which need the controller and no accounting. None of them is
needed for training to go on.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xelm_nemo.launch import signals
from xelm_nemo.launch.job import LOG, START_OF_RUN, VARIABLES
from xelm_nemo.launch.state import PREEMPTED, STOPPED, TIMED_OUT, slurm_job, slurm_restart

BATCH = "XELM_BATCH"  # set for a worker that a batch job started
GRACE = "XELM_GRACE_SECONDS"
ACTIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SUSPENDED",
    "STOPPED",
)
_EARLY_SECONDS = 60  # SLURM may send the signal before a time limit so much too soon
_PATIENCE_SECONDS = 10
_PORTS = range(20_000, 30_000)


def inside() -> bool:
    """Whether a batch job started this process directly, not through the local launcher."""
    return BATCH in os.environ


def run_job(module: str, arguments: Sequence[str], folder: str, stop_signals: Sequence[str]) -> None:
    """Become `python -m <module> <arguments>`, a rank of a job; each task of a job calls it.

    The signals that ask to stop are kept until the module can take them.
    """
    signals.block(stop_signals)
    environment = rank_environment(os.environ)
    if environment["RANK"] == "0":
        _log_to(Path(folder))
    command = [sys.executable, "-m", module, *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | environment | VARIABLES | {BATCH: "1"})


def rank_environment(slurm: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """torchrun's variables from those that srun gives a task.

    A task that sees fewer GPUs than its node has tasks (`--gpus-per-task`) takes the first that it sees.
    """
    local, devices = int(slurm.get("SLURM_LOCALID", 0)), slurm.get("CUDA_VISIBLE_DEVICES", "")
    num_devices = len(devices.split(",")) if devices else 0
    tasks = int(slurm.get("SLURM_NTASKS", 1))
    return {
        "RANK": slurm.get("SLURM_PROCID", "0"),
        "LOCAL_RANK": str(local % num_devices if num_devices else local),
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // int(slurm.get("SLURM_NNODES", 1))),
        "MASTER_ADDR": first_host(slurm.get("SLURM_JOB_NODELIST", "127.0.0.1")),
        "MASTER_PORT": str(_PORTS[int(slurm.get("SLURM_JOB_ID", 0)) % len(_PORTS)]),
    }


def first_host(nodes: str) -> str:
    """The first name of a node list such as "gpu[03-05,9],login"."""
    match = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    assert match
    return f"{match[1]}{match[2] or ''}{match[3]}"


def why_stopped(signal: str | None) -> str:
    """Whether the signal came for a preemption, for the time limit, or because somebody wanted it."""
    if not inside():
        return STOPPED
    shown = ask("scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]) or ""
    fields = dict(re.findall(r"(\w+)=(\S+)", shown))
    if fields.get("PreemptTime", "None") not in ("None", "Unknown"):
        return PREEMPTED
    left = _seconds(fields.get("TimeLimit", "")) - _seconds(fields.get("RunTime", ""))
    return TIMED_OUT if left <= int(os.environ.get(GRACE, 0)) + _EARLY_SECONDS else STOPPED


@dataclass(frozen=True)
class Queued:
    """A job as SLURM knows it."""

    state: str
    reason: str
    node: str

    @property
    def is_held(self) -> bool:
        """Whether SLURM has put it back and holds it, as after a controller's crash that started it twice."""
        return self.state == "REQUEUE_HOLD" or "requeued held" in self.reason

    @property
    def is_active(self) -> bool:
        """Whether it runs or will run."""
        return self.state in ACTIVE


def queue(patience_seconds: float = _PATIENCE_SECONDS) -> dict[str, Queued] | None:
    """The user's jobs by name ("41", "41_3"), those that ended lately included; None when SLURM is down."""
    words = ("--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%r|%N")
    shown = ask("squeue", *words, patience_seconds=patience_seconds)
    if shown is None:
        return None
    rows = [line.split("|") for line in shown.splitlines() if line.count("|") == 3]
    return {name.strip(): Queued(state, reason, node) for name, state, reason, node in rows}


def requeue(job: str) -> bool:
    """Put a job back into the queue; False when the controller does not answer or will not."""
    return ask("scontrol", "requeue", job) is not None


def release(job: str) -> bool:
    """Let a held job run."""
    return ask("scontrol", "release", job) is not None


def cancel(jobs: Sequence[str]) -> bool:
    """Cancel jobs; False when the controller does not answer."""
    return ask("scancel", *jobs) is not None


def ask(*command: str, patience_seconds: float = _PATIENCE_SECONDS) -> str | None:
    """What a command of SLURM says; None when it fails, is not there, or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _log_to(folder: Path) -> None:
    """Send what this process says to the job's log, behind a line that parts it from earlier attempts."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    began, node = time.strftime("%Y-%m-%d %H:%M:%S"), os.environ.get("SLURMD_NODENAME")
    job = f"SLURM job {slurm_job()}, restart {slurm_restart()}, on {node}"
    os.write(descriptor, f"\n{START_OF_RUN}{began} {job}\n".encode())
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _seconds(duration: str) -> float:
    """Of "1-02:03:04", "02:03:04" or "UNLIMITED"."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", duration)
    if not match:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
