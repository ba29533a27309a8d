"""What a result depends on besides its configuration: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xelm_nemo
from xelm_nemo import device

RECORD = "run.json"
_PACKAGES = (
    *("torch", "megatron-core", "transformer-engine", "triton", "numpy", "scipy", "scikit-learn"),
    *("sentencepiece", "transformers", "tokenizers", "safetensors"),
)


def environment() -> dict[str, Any]:
    """Versions, commit and machine of this process, for `run.json`."""
    return {
        "xelm_nemo": xelm_nemo.__version__,
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "host": platform.node(),
        "cpu_cores": device.cores(),
        "gpus": device.names(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that runs, "+" behind it when files differ; None when it is installed."""
    checkout = Path(xelm_nemo.__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
