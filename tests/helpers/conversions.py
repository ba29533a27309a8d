"""Conversions in a process of their own, with their time and the most memory that they had."""

import functools
import subprocess
import sys
from typing import NamedTuple

PROGRAM = """
import sys, threading, time
from pathlib import Path
from xelm_nemo.artifacts import Recipe, verify
from xelm_nemo.checkpoint import distributed_files
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.metaseq import import_metaseq
from xelm_nemo.checkpoint.metaseq_export import export_metaseq
from xelm_nemo.checkpoint.nemo import import_nemo

def export_nemo():
    output.mkdir()
    write_checkpoint(source, output, tokenizer=None)

source, output = map(Path, sys.argv[2:])
recipe = Recipe("model", {})
action = {
    "nothing": lambda: None,
    "nothing_nemo": lambda: None,
    "import_hf": lambda: import_hf(source, output, recipe),
    "import_metaseq": lambda: import_metaseq(source, output, recipe, tokenizer="words"),
    "import_nemo": lambda: import_nemo(source, output, recipe, tokenizer="words"),
    "verify": lambda: verify(source),
    "export_hf": lambda: export_hf(source, output, tokenizer=None),
    "export_metaseq": lambda: export_metaseq(source, output),
    "export_nemo": export_nemo,
}[sys.argv[1]]
if sys.argv[1] in ("nothing_nemo", "export_nemo"):
    from xelm_nemo.nemo.context import write_checkpoint

def bytes_now(kind):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) * 1024

own, done = [bytes_now("RssAnon")], threading.Event()

def watch():
    while not done.wait(0.003):
        own.append(bytes_now("RssAnon"))

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
action()
seconds = time.perf_counter() - start
done.set()
watcher.join()
# Not ru_maxrss, which a process takes over from the one that started it.
print(seconds, bytes_now("VmHWM"), max(own))
"""


class Measured(NamedTuple):
    """What a conversion took."""

    seconds: float
    peak_bytes: int  # the most at any time, the pages of mapped files among it
    own_bytes: int  # the same without them, looked at every few milliseconds


def measure(action, source, output):
    """Run one of the actions above."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, action, str(source), str(output)]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    seconds, *sizes = last.split()
    return Measured(float(seconds), *map(int, sizes))


def taken(action, source, output, *, above="nothing", kind="peak_bytes"):
    """The memory of one of the actions, beyond that of the libraries, which another brings."""
    return getattr(measure(action, source, output), kind) - getattr(_libraries(above), kind)


@functools.cache
def _libraries(action):
    return measure(action, "", "")
