"""How a command ends: quietly, with one line for what a user can mend, or with a traceback for a bug."""

import sys
from collections.abc import Callable

from xelm_nemo.errors import XelmError

USER_ERROR, INTERRUPTED = 2, 130


def run(main: Callable[[], None]) -> int:
    """Call a command's body and return its exit code."""
    try:
        main()
    except XelmError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return INTERRUPTED
    return 0
