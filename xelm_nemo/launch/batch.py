"""Batch jobs: what sbatch is told, through submitit. The only file that knows submitit.

The job runs nothing but `slurm.run_job` with words that stand in the script's own comments, and that
function becomes the worker at once; what is to be done is in the run folder's JSON and YAML files. How the
worker fares and ends is in its state file, so nothing is asked of submitit after the submission.
"""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo.errors import LaunchError
from xelm_nemo.launch.config import LaunchConfig, SlurmConfig
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.slurm import GRACE, run_job


@dataclass(frozen=True)
class Batch:
    """Jobs that one sbatch submits, as an array when they are several. All have as many ranks.

    Attributes:
        name: SLURM's name for it.
        jobs: one an array element.
        after: jobs to wait for, such as "afterok:41"; empty: none.
        is_stage: whether it trains no expert and takes the resources of a stage.
    """

    name: str
    jobs: Sequence[Job]
    after: str = ""
    is_stage: bool = False


def submit(batch: Batch, config: LaunchConfig, folder: Path) -> list[str]:
    """Submit a batch; what sbatch was given stays in the folder.

    Returns:
        SLURM's names of the jobs, "41" or "41_0", in the order of `batch.jobs`.

    Raises:
        LaunchError: sbatch refused, or is not there.
    """
    if shutil.which("srun") is None:
        raise LaunchError("launch=slurm: there is no sbatch here; run it where SLURM is, or launch=local.")
    from submitit.core.utils import FailedJobError

    executor = _executor(batch, config, folder)
    calls = [_call(job, config) for job in batch.jobs]
    try:
        with executor.batch():
            submitted = [executor.submit(run_job, *call) for call in calls]
    except (FailedJobError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise LaunchError(f"sbatch refused {batch.name}: {reason}; see launch.slurm.*.") from error
    return [str(job.job_id) for job in submitted]


def text(batch: Batch, config: LaunchConfig, folder: Path) -> str:
    """The batch script that `submit` hands to sbatch."""
    executor = _executor(batch, config, folder)
    if len(batch.jobs) > 1:
        executor.parameters["map_count"] = len(batch.jobs)
    script: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return script


def nodes(config: SlurmConfig, ranks: int) -> int:
    """How many nodes a model takes."""
    return -(-ranks // config.ranks_per_node)


def _executor(batch: Batch, config: LaunchConfig, folder: Path) -> Any:
    from submitit import SlurmExecutor  # a second to import, and no local run needs it

    class AnywhereExecutor(SlurmExecutor):
        """submitit's own, which can also show a script where there is no SLURM."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = AnywhereExecutor(folder=folder)
    executor.update_parameters(**_parameters(batch, config))
    return executor


def _call(job: Job, config: LaunchConfig) -> tuple[str, list[str], str, list[str]]:
    """The arguments of `run_job`: plain strings."""
    folder = str(job.folder.resolve())
    return job.module, list(job.arguments) or [folder], folder, list(config.stop_signals)


def _parameters(batch: Batch, config: LaunchConfig) -> dict[str, Any]:
    slurm, ranks = config.slurm, batch.jobs[0].num_ranks
    num_nodes = nodes(slurm, ranks)
    tasks = ranks // num_nodes
    # A stage is one process that may start a rank on every GPU of its node.
    share = slurm.ranks_per_node if batch.is_stage else tasks
    more = {"requeue": True, "kill_on_invalid_dep": "yes", "job_name": batch.name}
    more |= {"signal": f"{config.stop_signals[0]}@{slurm.grace_seconds}"}
    more |= slurm.sbatch | (slurm.stages if batch.is_stage else {})
    parameters = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "time": slurm.time,
        "nodes": num_nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": slurm.cpus_per_rank * share // tasks,
        "gpus_per_node": slurm.gpus_per_rank * share or None,
        "mem": None if slurm.mem_gb is None else f"{slurm.mem_gb}G",
        "dependency": batch.after or None,
        "array_parallelism": config.max_parallel or len(batch.jobs),
        "srun_args": _srun_arguments(slurm),
        "setup": _before(batch, slurm),
        "teardown": _after(slurm),
        "additional_parameters": {key.replace("-", "_"): value for key, value in more.items()},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _srun_arguments(slurm: SlurmConfig) -> list[str]:
    arguments = ["--kill-on-bad-exit=1"]
    arguments += [f"--container-image={slurm.container}"] if slurm.container else []
    mounts = ",".join(slurm.container_mounts)
    arguments += [f"--container-mounts={mounts}"] if mounts else []
    return [*arguments, *slurm.srun_args]


def _before(batch: Batch, slurm: SlurmConfig) -> list[str]:
    folders = " ".join(shlex.quote(str(job.folder.resolve())) for job in batch.jobs)
    return [
        *(f"# {index}: python {shlex.join(job.words)}" for index, job in enumerate(batch.jobs)),
        *(f"module load {shlex.quote(module)}" for module in slurm.modules),
        f"export {GRACE}={slurm.grace_seconds}",
        *slurm.setup,
        f"folders=({folders})",
    ]


def _after(slurm: SlurmConfig) -> list[str]:
    """Lines that tell the state file how the job ended, whatever killed it, and put it back if need be."""
    ended = shlex.join([sys.executable, "-m", "xelm_nemo.launch", "ended"])
    return [
        "code=$?",
        f'{ended} "${{folders[${{SLURM_ARRAY_TASK_ID:-0}}]}}" $code {slurm.max_crashes}',
        "exit $code",
    ]
