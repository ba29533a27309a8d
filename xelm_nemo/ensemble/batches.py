"""Which texts go through a model together."""

from collections.abc import Iterator, Sequence


def batches(lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None) -> Iterator[list[int]]:
    """Indices of texts in groups of at most `batch_tokens`, padding included, or of one that is longer.

    Longest first: texts of a group are of like length, and a group too large for memory fails at once.

    Args:
        lengths: of the texts, in tokens.
        batch_tokens: of a group.
        batch_size: the most texts of a group; None: as many as `batch_tokens` allows.
    """
    queue, start = sorted(range(len(lengths)), key=lambda n: -lengths[n]), 0
    while start < len(queue):
        size = max(1, batch_tokens // max(1, lengths[queue[start]]))
        size = size if batch_size is None else min(size, batch_size)
        yield queue[start : start + size]
        start += size
