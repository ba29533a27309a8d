"""Lines that hold no document: what is wrong with each, and how many there are of which kind."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_LISTED = 100  # bad lines of a file that are remembered one by one; all are counted


class BadLine(ValueError):
    """One line that cannot be read.

    Attributes:
        kind: what it is counted as.
        said: what is wrong with it, for a sentence that begins with file and line.
        remedy: what to do about it.
    """

    def __init__(self, kind: str, said: str, remedy: str) -> None:
        super().__init__(f"{said}; {remedy}")
        self.kind, self.said, self.remedy = kind, said, remedy


@dataclass
class Skipped:
    """The bad lines of one file.

    Attributes:
        file: its path from the corpus folder.
        kinds: kind -> number of lines.
        lines: line (from 1) and kind of the first of them.
    """

    file: str
    kinds: Counter[str] = field(default_factory=Counter)
    lines: list[tuple[int, str]] = field(default_factory=list)

    def add(self, index: int, bad: BadLine) -> None:
        """Count the line with this index (from 0)."""
        self.kinds[bad.kind] += 1
        if len(self.lines) < _LISTED:
            self.lines.append((index + 1, bad.kind))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values; kinds in alphabetical order."""
        kinds = dict(sorted(self.kinds.items()))
        return {"file": self.file, "bad_lines": self.kinds.total(), "kinds": kinds, "lines": self.lines}


def skipped_line(row: dict[str, Any]) -> str:
    """What `Skipped.as_json` says of a file, as a line for people."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["kinds"].items())
    first = row["lines"][0][0]
    return f"{row['file']}: {row['bad_lines']} bad lines skipped ({kinds}), the first is line {first}"
