import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_run_ends_by_saying_what_was_left_out_and_what_would_run_it():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/unit/test_repository.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    expected = "not run here: 1 slow test (each takes more than ten seconds; run `make test-slow`)"
    assert expected in run.stdout.splitlines()
