"""Writes `unicode_ranges.h`: what this Python knows of every code point, for unicode.cpp.

setup.py runs it, so that xelm_nemo._csrc lower-cases and splits text as `str` and `re` of the very Python
that it is built for; 3.11 and 3.12 have different versions of Unicode.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

CAPITAL_SIGMA, SMALL_SIGMA, FINAL_SIGMA = "\u03a3", "\u03c3", "\u03c2"
CODE_POINTS = range(sys.maxunicode + 1)

# \w of `re` is isalnum() and the underscore; \s, and what split() splits at, is isspace().
CLASSES: dict[str, Callable[[str], bool]] = {
    "kWord": lambda c: c.isalnum() or c == "_",
    "kDigit": str.isdigit,
    "kSpace": str.isspace,
    "kIgnorable": lambda c: _is_final_after(f"A{c}") and not _is_final_after(c),
    "kCased": lambda c: _is_final_after(c),
}


def main(header: Path) -> None:
    """Write the header."""
    lines = [
        f"// Unicode {unicodedata.unidata_version}, as Python {sys.version.split()[0]} has it.",
        "#pragma once",
        "namespace xelm::ranges {",
        *(_class_array(name, is_member) for name, is_member in CLASSES.items()),
        *_lower_arrays(),
        "}  // namespace xelm::ranges",
    ]
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text("\n".join(lines) + "\n")


def _is_final_after(before: str) -> bool:
    """Whether a capital sigma behind this text is a final one, which tells cased and ignorable characters."""
    return (before + CAPITAL_SIGMA).lower()[-1] == FINAL_SIGMA


def _class_array(name: str, is_member: Callable[[str], bool]) -> str:
    """`{first, last}` of every range of members."""
    ranges = []
    for inside, members in groupby(CODE_POINTS, key=lambda code: is_member(chr(code))):
        run = list(members)
        if inside:
            ranges.append((run[0], run[-1]))
    return _array(f"{name}[][2]", (f"{{{first}, {last}}}" for first, last in ranges))


def _lower_arrays() -> list[str]:
    """`{code point, lower case}` where the lower case is another code point, and where it is two of them."""
    lower = {code: chr(code).lower() for code in CODE_POINTS}
    single = [(code, ord(text)) for code, text in lower.items() if len(text) == 1 and ord(text) != code]
    double = [(code, *map(ord, text)) for code, text in lower.items() if len(text) > 1]
    assert all(len(row) == 3 for row in double), "a lower case of three code points"
    return [
        _array("kLower[][2]", (f"{{{code}, {to}}}" for code, to in single)),
        _array("kLowerTwo[][3]", (f"{{{code}, {first}, {second}}}" for code, first, second in double)),
    ]


def _array(declaration: str, values: Iterable[str]) -> str:
    return f"constexpr unsigned {declaration} = {{\n" + ",\n".join(values) + "\n};"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
