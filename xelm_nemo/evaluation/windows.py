"""Documents as the sequences that a model is run on.

A document that fits the context is one window. A longer one is read through windows of the context's length,
each `stride` tokens further than the one before; a window scores the tokens that no earlier one has scored,
so every token counts once, and sees at least the context less `stride` tokens before it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A stretch of a document: inputs ids[start:end], targets ids[start + 1 : end + 1].

    Attributes:
        document: index of the document.
        start: first input token.
        end: behind the last one.
        scored_from: the inputs before this one only give context; their targets are an earlier window's.
    """

    document: int
    start: int
    end: int
    scored_from: int

    @property
    def length(self) -> int:
        """Number of input tokens."""
        return self.end - self.start


def windows(document: int, num_tokens: int, *, seq_length: int, stride: int) -> list[Window]:
    """The windows of a document with so many tokens to score, in order."""
    found = [Window(document, 0, min(seq_length, num_tokens), 0)]
    while (done := found[-1].end) < num_tokens:
        end = min(done + stride, num_tokens)
        found.append(Window(document, end - seq_length, end, done))
    return found
