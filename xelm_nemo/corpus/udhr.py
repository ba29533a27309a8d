"""The corpus shipped with the package: the Universal Declaration of Human Rights in 17 languages.

It is parallel text, so it is split by article: no translation of an article of `valid` or `test` is in
`train`. The held-out articles are spread evenly over the text:

    test   4 (slavery), 10 (fair hearing), 16 (marriage), 22 (social security), 28 (social order)
    valid  7 (equality before the law), 13 (movement), 19 (opinion), 25 (standard of living)
    train  every other article, the preamble and the titles
"""

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

from xelm_nemo.files import write_atomic

TEST_ARTICLES = (4, 10, 16, 22, 28)
VALID_ARTICLES = (7, 13, 19, 25)
PREAMBLE = 0
NUM_ARTICLES = 30


def write_corpus(folder: Path) -> dict[str, int]:
    """Write `{train,valid,test}/00000/udhr.jsonl` into a folder.

    Each line keeps the fields of the shipped file and gains `article`: 1 to 30, 0 for the preamble, null
    for a title.

    Returns:
        split -> number of documents.
    """
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for row in documents():
        lines[_split(row["article"])].append(json.dumps(row, ensure_ascii=False) + "\n")
    for split, split_lines in lines.items():
        write_atomic(folder / split / "00000" / "udhr.jsonl", "".join(split_lines))
    return {split: len(split_lines) for split, split_lines in lines.items()}


def documents() -> list[dict[str, Any]]:
    """The shipped documents in order, `article` added."""
    shipped = files("xelm_nemo") / "data" / "udhr" / "udhr.jsonl"
    rows = [json.loads(line) for line in shipped.read_bytes().splitlines()]
    # The numbers in the ids count from the title, which some languages lack, so equal numbers are not
    # equal articles. But every language ends alike: preamble, article 1, ..., article 30.
    left = Counter(row["lang"] for row in rows)
    for row in rows:
        left[row["lang"]] -= 1
        article = NUM_ARTICLES - left[row["lang"]]
        row["article"] = article if article >= PREAMBLE else None
    return rows


def _split(article: int | None) -> str:
    if article in TEST_ARTICLES:
        return "test"
    return "valid" if article in VALID_ARTICLES else "train"
