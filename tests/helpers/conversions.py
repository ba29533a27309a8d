"""Conversions in a process of their own, with their time and the most memory that they had."""

import subprocess
import sys
from typing import NamedTuple

PROGRAM = """
import sys, time
from pathlib import Path
from xelm_nemo.artifacts import Recipe, verify
from xelm_nemo.checkpoint import distributed_files
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.metaseq_export import export_metaseq

source, output = map(Path, sys.argv[2:])
action = {
    "nothing": lambda: None,
    "import_hf": lambda: import_hf(source, output, Recipe("model", {})),
    "verify": lambda: verify(source),
    "export_hf": lambda: export_hf(source, output, tokenizer=None),
    "export_metaseq": lambda: export_metaseq(source, output),
}[sys.argv[1]]
start = time.perf_counter()
action()
seconds = time.perf_counter() - start
# Not ru_maxrss, which a process takes over from the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(seconds, int(status["VmHWM"].split()[0]) * 1024)
"""


class Measured(NamedTuple):
    """What a conversion took; memory counts the pages of mapped files too."""

    seconds: float
    peak_bytes: int


def measure(action, source, output):
    """Run one of the actions above."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, action, str(source), str(output)]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    seconds, peak_bytes = last.split()
    return Measured(float(seconds), int(peak_bytes))
