"""Jobs as NeMo-Run's executors and tasks, for those who launch with it. The only file that knows nemo_run.

NeMo-Run starts and watches the jobs then, and nothing of this program's own does. A worker still locks its
folder, says in it how it fares, and goes on from its last checkpoint when it is started again.
"""

import importlib.util
import sys
from typing import Any

from xelm_nemo.errors import ConfigError
from xelm_nemo.launch.batch import nodes
from xelm_nemo.launch.config import LaunchConfig
from xelm_nemo.launch.job import VARIABLES, Job


def executor_and_task(job: Job, config: LaunchConfig) -> tuple[Any, Any]:
    """A job as a `nemo_run` executor, local or SLURM's as `launch` says, and the `nemo_run.Script` to run.

    Args:
        job: whose folder is prepared.
        config: the resources.

    Raises:
        ConfigError: nemo_run is not installed, or there is no account, without which it submits nothing.
    """
    if importlib.util.find_spec("nemo_run") is None:
        raise ConfigError("NeMo-Run is not installed; run `pip install -c constraints.txt nemo_run`.")
    if config.name == "slurm" and config.slurm.account is None:
        raise ConfigError(
            "launch.slurm.account is not set, and NeMo-Run submits nothing without one; set it."
        )
    import nemo_run

    if config.name == "slurm":
        executor = nemo_run.SlurmExecutor(**_slurm(job, config), env_vars=dict(VARIABLES))
        words = ["run", job.module, str(job.folder.resolve())]  # a rank's number is SLURM's
        return executor, nemo_run.Script("xelm_nemo.launch", args=words, entrypoint=sys.executable, m=True)
    launcher = "torchrun" if job.num_ranks > 1 else None
    executor = nemo_run.LocalExecutor(
        ntasks_per_node=job.num_ranks, launcher=launcher, env_vars=dict(VARIABLES)
    )
    return executor, nemo_run.Script(job.module, args=job.words[2:], entrypoint=sys.executable, m=True)


def _slurm(job: Job, config: LaunchConfig) -> dict[str, Any]:
    import nemo_run

    slurm, num_nodes = config.slurm, nodes(config.slurm, job.num_ranks)
    ranks = job.num_ranks // num_nodes
    days, minutes = divmod(slurm.time, 24 * 60)
    return {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "time": f"{days}-{minutes // 60:02}:{minutes % 60:02}:00",
        "nodes": num_nodes,
        "ntasks_per_node": ranks,
        "cpus_per_task": slurm.cpus_per_rank,
        "gpus_per_node": slurm.gpus_per_rank * ranks or None,
        "mem": None if slurm.mem_gb is None else f"{slurm.mem_gb}G",
        "signal": f"{config.stop_signals[0]}@{slurm.grace_seconds}",
        "container_image": slurm.container,
        "container_mounts": slurm.container_mounts,
        "srun_args": list(slurm.srun_args),  # NeMo-Run itself has srun end all ranks when one ends badly
        "additional_parameters": dict(slurm.sbatch),
        "setup_lines": "\n".join([*(f"module load {module}" for module in slurm.modules), *slurm.setup]),
        "packager": nemo_run.Packager(),  # the package is installed where jobs run
        "retries": slurm.max_crashes,
    }
