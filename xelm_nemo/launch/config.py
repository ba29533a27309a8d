"""Settings of launching."""

from dataclasses import dataclass, field

STOP_SIGNALS = ("USR1", "USR2", "TERM")


@dataclass(frozen=True)
class SlurmConfig:
    """What a SLURM job asks for. None leaves it to the cluster's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: int = 1440  # minutes
    ranks_per_node: int = 8  # at most; a model with more ranks takes several nodes
    gpus_per_rank: int = 1  # 0: on CPUs
    cpus_per_rank: int = 8
    mem_gb: int | None = None  # of a node; 0: all of it
    file_jobs: int = 1  # jobs that share the corpus files in `cluster` and `shard`
    grace_seconds: int = 120  # this long before its limit a job is asked to stop
    max_crashes: int = 2  # so often a job that crashed is started again
    modules: list[str] = field(default_factory=list)  # for `module load`
    setup: list[str] = field(default_factory=list)  # shell lines before srun
    container: str | None = None  # an image for srun (Pyxis, or Slurm's own --container)
    container_mounts: list[str] = field(default_factory=list)  # "from:to"
    srun_args: list[str] = field(default_factory=list)
    sbatch: dict[str, str] = field(default_factory=dict)  # any other parameter of sbatch
    stages: dict[str, str] = field(
        default_factory=dict
    )  # the same, over these, for jobs that train no expert


@dataclass(frozen=True)
class LaunchConfig:
    """Where jobs run."""

    name: str = "local"
    max_parallel: int | None = None  # jobs at once; None: one a GPU, or as many as the CPU has cores
    threads: int = 1  # CPU threads of one rank; the bits of a result depend on it
    step_timeout: float = 1800.0  # seconds without a finished step after which a training process gives up
    stop_signals: list[str] = field(default_factory=lambda: ["USR2"])  # save and stop; the first is SLURM's
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
