"""Programs in a process of their own, with their time and the most memory that they had."""

import subprocess
import sys
from typing import NamedTuple

PROGRAM = """
import sys, threading, time
from pathlib import Path

def bytes_now(kind):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) * 1024

{before}

own, done = [bytes_now("RssAnon")], threading.Event()

def watch():
    while not done.wait(0.003):
        own.append(bytes_now("RssAnon"))

watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
{action}
seconds = time.perf_counter() - start
done.set()
watcher.join()
# Not ru_maxrss, which a process takes over from the one that started it.
print(seconds, bytes_now("VmHWM"), max(own), own[0])
"""


class Measured(NamedTuple):
    """What a program took."""

    seconds: float
    peak_bytes: int  # the most at any time, the pages of mapped files among it
    own_bytes: int  # the same without them, looked at every few milliseconds
    own_bytes_before: int  # what of these the imports and preparations had


def measure_program(before, action, *arguments):
    """Run `action`, a line of Python, after the lines `before`, which are not timed.

    Both find the arguments in `sys.argv`.
    """
    program = PROGRAM.format(before=before, action=action)
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    seconds, *sizes = last.split()
    return Measured(float(seconds), *map(int, sizes))
