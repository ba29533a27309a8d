"""A rank that waits for ever for another says where it stands, and ends."""

import faulthandler
import os
import sys
import threading
import time


class Watchdog:
    """Ends this process if no iteration finishes in time, which a rank that is dead or stopped causes in all.

    A thread, because the one that trains may wait in a library that hears no exception.
    """

    def __init__(self, name: str, seconds: float) -> None:
        """Begin to watch.

        Args:
            name: of the model, for people.
            seconds: that an iteration may take, its validation and the begin of its checkpoint included.
        """
        self._name, self._seconds = name, seconds
        self._ended, self._last, self._iteration = threading.Event(), time.monotonic(), 0
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, iteration: int) -> None:
        """An iteration has finished."""
        self._last, self._iteration = time.monotonic(), iteration

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._seconds - time.monotonic())):
            if time.monotonic() >= self._last + self._seconds:
                self._give_up()

    def _give_up(self) -> None:
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.write(
            f"error: {self._name}: no step has finished in {self._seconds:g} s (launch.step_timeout) after "
            f"iteration {self._iteration}: a rank is dead or hangs; above is where this one, rank "
            f"{os.environ.get('RANK', 0)}, waits. The last checkpoint is whole; run the same command again.\n"
        )
        sys.stderr.flush()
        os._exit(1)
