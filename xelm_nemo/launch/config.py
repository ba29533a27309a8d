"""Settings of launching."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchConfig:
    """Where jobs run."""

    name: str = "local"
    max_parallel: int | None = None  # jobs at once; None: one a GPU, or as many as the CPU has cores
    threads: int = 1  # CPU threads of one rank; the bits of a result depend on it
