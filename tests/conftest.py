"""What every test gets: no network, fixed seeds, kernels on the interpreter, and an honest last page."""

import os
import random
from collections import Counter

import torch

# Triton reads this when a kernel is decorated, so it must be set before any kernel is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Megatron wants it set before CUDA starts: communication is then queued in the order of the program.
os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # as commands do: cuBLAS looks before its first product
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork

import numpy as np
import pytest

from tests.helpers.golden import GoldenFiles

# Marker -> (why such tests are left out, what runs them).
LEFT_OUT = {
    "gpu": ("{devices}", "make test-gpu"),
    "multigpu": ("{devices}", "make test-gpu"),
    "slow": ("each takes more than ten seconds", "make test-slow"),
    "slurm": ("they start a SLURM on this machine", "make test-slurm"),
    "nemo": ("they need NeMo, which takes long to import", "make test-nemo"),
}
DESELECTED = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write golden files, compare nothing")


def pytest_configure(config):
    config.stash[DESELECTED] = Counter()


def pytest_deselected(items):
    for item in items:
        marker = next((name for name in LEFT_OUT if item.get_closest_marker(name)), None)
        item.config.stash[DESELECTED][marker] += 1


def pytest_terminal_summary(terminalreporter, config):
    """Say what did not run and what would run it; skipped tests are listed by -ra."""
    for marker, count in sorted(config.stash[DESELECTED].items(), key=str):
        tests = f"{count} {marker or 'other'} test{'s' if count > 1 else ''}"
        reason, command = LEFT_OUT.get(marker, ("not selected", "make test"))
        reason = reason.format(devices=cuda_devices())
        terminalreporter.write_line(f"not run here: {tests} ({reason}; run `{command}`)")


def cuda_devices():
    count = torch.cuda.device_count()
    return f"CUDA devices here: {count}" if count else "no CUDA device"


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def golden(request):
    """Compare text with tests/golden/<name>; `make golden` writes the file instead."""
    return GoldenFiles(request.config.rootpath / "tests/golden", rewrite=request.config.getoption("--golden"))


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(1234)
    np.random.seed(1234)
    torch.manual_seed(1234)


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(request, monkeypatch):
    """In kernel tests torch.empty returns NaN, so an element that the kernel forgot shows."""
    if "kernels" not in request.path.parts:
        return
    empty = torch.empty

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() and not out.requires_grad else out

    monkeypatch.setattr(torch, "empty", poisoned)
