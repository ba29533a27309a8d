"""Which texts go through a model together."""

from collections.abc import Iterator, Sequence


def batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None, *, padded: bool = True
) -> Iterator[list[int]]:
    """Indices of texts in groups of at most `batch_tokens`, padding included, or of one that is longer.

    Longest first: texts of a group are of like length, and a group too large for memory fails at once.

    Args:
        lengths: of the texts, in tokens.
        batch_tokens: of a group.
        batch_size: the most texts of a group; None: as many as `batch_tokens` allows.
        padded: whether each text takes as many tokens as the longest of its group, or only its own.
    """
    group: list[int] = []
    room = batch_tokens
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        taken = lengths[group[0]] if group and padded else lengths[n]
        if group and (taken > room or len(group) == batch_size):
            yield group
            group, room, taken = [], batch_tokens, lengths[n]
        group.append(n)
        room -= taken
    if group:
        yield group
