"""How a command ends: quietly, with one line for what a user can mend, or with a traceback for a bug."""

import os
import sys
from collections.abc import Callable

from xelm_nemo.errors import Stopped, XelmError

USER_ERROR, INTERRUPTED = 2, 130
AGAIN = 75  # stopped on request with everything saved; the same command goes on
FENCED = 76  # another process has taken the folder; it, and not this one, goes on


def run(main: Callable[[], None]) -> int:
    """Call a command's body and return its exit code."""
    # Float32 is to be float32 on a GPU (device.enter says why); cuBLAS looks before its first product, which
    # may be clustering's.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    try:
        main()
    except Stopped as stopped:
        sys.stderr.write(f"{_visible(str(stopped))}\n")
        return AGAIN
    except XelmError as error:
        sys.stderr.write(f"error: {_visible(str(error))}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return INTERRUPTED
    return 0


def _visible(text: str) -> str:
    """The same in one line: what a checkpoint calls its tensors may end lines, or steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
