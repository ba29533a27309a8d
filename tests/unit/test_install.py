"""What `.ci/install` decides, with pip, uv and the driver played by the tests."""

import importlib.machinery
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA_BUILD, CPU_BUILD = ["torch", "nvidia-nccl-cu13", "triton"], ["torch", "sympy"]


class Machine:
    """Answers every command that the script runs, and remembers it."""

    def __init__(self, *, gpu=False, pip_finds=CPU_BUILD, uv_works=True):
        self.gpu, self.pip_finds, self.uv_works = gpu, pip_finds, uv_works
        self.installed = []

    def run(self, command, **_):
        done = subprocess.CompletedProcess(command, 0, stdout="")
        if command[0] == "nvidia-smi":
            done.returncode, done.stdout = (0, "GPU 0: H100") if self.gpu else (9, "No devices were found")
        elif "--dry-run" in command:
            done.stdout = json.dumps({"install": [{"metadata": {"name": name}} for name in self.pip_finds]})
        else:
            installer = "uv" if "uv" in command else "pip"
            self.installed.append((installer, command[-1].replace(str(ROOT), "")))
            done.returncode = 0 if installer == "pip" or self.uv_works else 2
        return done


@pytest.fixture
def script():
    loader = importlib.machinery.SourceFileLoader("install", str(ROOT / ".ci/install"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("install", loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def install(script, monkeypatch):
    """Run the script on a machine; returns what was installed, in order, versions left out."""

    def on(machine, *extras, torch_is_here=False):
        monkeypatch.setattr(script.subprocess, "run", machine.run)
        monkeypatch.setattr(script, "is_installed", lambda requirement: torch_is_here)
        script.main(extras)
        return [(installer, what.split("==")[0]) for installer, what in machine.installed]

    return on


def test_cpu_build_that_pip_finds_is_installed_first(install):
    assert install(Machine()) == [("pip", "torch"), ("pip", "[dev]")]


def test_where_pip_would_take_a_cuda_build_uv_brings_the_cpu_build(install):
    steps = install(Machine(pip_finds=CUDA_BUILD))
    assert steps == [("pip", "uv"), ("uv", "torch"), ("pip", "[dev]")]


def test_without_a_cpu_build_anywhere_one_line_says_so_and_installation_goes_on(install, capsys):
    assert install(Machine(pip_finds=CUDA_BUILD, uv_works=False))[-1] == ("pip", "[dev]")
    assert "is to be had from here; going on with the CUDA build." in capsys.readouterr().out


def test_machine_with_a_gpu_gets_what_pip_takes(install):
    assert install(Machine(gpu=True, pip_finds=CUDA_BUILD)) == [("pip", "[dev]")]


def test_torch_that_is_here_already_is_kept(install):
    assert install(Machine(pip_finds=CUDA_BUILD), torch_is_here=True) == [("pip", "[dev]")]


def test_further_extras_come_in_the_same_step(install):
    assert install(Machine(), "nemo", torch_is_here=True) == [("pip", "[dev,nemo]")]


def test_missing_driver_means_no_gpu(script, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not script.has_gpu()


def test_build_of_a_version_does_not_matter_to_whether_it_is_installed(script, monkeypatch):
    monkeypatch.setattr(script.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert script.is_installed("torch==2.13.0")
    assert not script.is_installed("torch==2.12.0")
