"""A disk on which only small files have room."""

import contextlib
import resource


@contextlib.contextmanager
def room_for_files_of(num_bytes):
    """Let this process, and those that it starts meanwhile, write no file that is longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
