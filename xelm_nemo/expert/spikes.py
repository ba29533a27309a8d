"""Losses that stand out: looked for among those that are logged anyway, so that no step waits for it."""

import statistics
from collections import deque

WINDOW = 20  # logged losses that are compared with
_LEAST_SEEN = 5  # of them, before anything stands out
_NATS = 0.5  # above the median at least,
_DEVIATIONS = 6  # and so many median deviations from it, for the losses of small batches lie far apart


class Spikes:
    """The last losses of a run. After a restart it begins anew."""

    def __init__(self) -> None:
        """Have seen none."""
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def height(self, loss: float) -> float | None:
        """How far a loss is above the median of those before it, if that is far; it is then one of them."""
        before, found = list(self._seen), None
        self._seen.append(loss)
        if len(before) >= _LEAST_SEEN:
            median = statistics.median(before)
            deviation = statistics.median(abs(other - median) for other in before)
            if loss - median > max(_NATS, _DEVIATIONS * deviation):
                found = loss - median
        return found
