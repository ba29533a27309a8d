"""What `.ci/run` does where SLURM cannot be had, and when tests fail; `make` is played by a script."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "not run here: the slurm tests"


@pytest.fixture
def ci(tmp_path):
    """Run `.ci/run` where some of make's words fail: exit code, the words asked for, and the last line."""

    def run(*failing, once=False):
        cases, make, asked = "|".join(failing) or "none", tmp_path / "make", tmp_path / "asked"
        asked.unlink(missing_ok=True)
        fails = f"[ $(grep -cx -- $1 {asked}) -gt 1 ] || exit 2" if once else "exit 2"
        make.write_text(f'#!/bin/sh\necho "$1" >> {asked}\ncase "$1" in {cases}) {fails};; esac\n')
        make.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            [ROOT / ".ci/run"], env=os.environ | {"PATH": path}, capture_output=True, text=True
        )
        return done.returncode, asked.read_text().split(), (done.stdout.splitlines() or [""])[-1]

    return run


def test_tests_on_slurm_run_where_it_can_be_had(ci):
    code, asked, last = ci()
    assert code == 0 and NOT_RUN not in last
    assert asked == ["check", "test", "test-slow", "slurm", "test-slurm", "test-nemo"]


def test_machine_that_cannot_have_slurm_passes_and_says_so_last(ci):
    code, asked, last = ci("slurm")
    assert code == 0 and last.startswith(NOT_RUN)
    assert "test-slurm" not in asked and asked[-1] == "test-nemo"


@pytest.mark.parametrize("word", ["check", "test", "test-slow", "test-slurm", "test-nemo"])
def test_what_fails_fails_the_whole(ci, word):
    code, asked, _ = ci(word)
    assert code != 0 and asked[-1] == word


def test_tests_on_slurm_have_a_second_try_alone(ci):
    code, asked, last = ci("test-slurm", once=True)
    assert code == 0 and last.startswith("the slurm tests failed at the first try")
    assert asked[-3:] == ["test-slurm", "test-slurm", "test-nemo"]
    assert ci("test-slow", once=True)[0] != 0
