"""Text to measure on: files of JSONL, or what comes with the package."""

import json
from collections.abc import Iterator
from pathlib import Path

from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ConfigError

SHIPPED = "udhr"  # the name of the text in 17 languages that comes with the package
MOST_BYTES = 5_000_000  # of a file


def jsonl_files(corpus: str, folder: Path) -> list[Path]:
    """The files of a corpus.

    Args:
        corpus: a `.jsonl` file, a folder of them, or "udhr".
        folder: where the text of the package is written.

    Raises:
        ConfigError: there is no such file.
    """
    place = Path(corpus)
    if corpus == SHIPPED:
        place = folder / f"{SHIPPED}.jsonl"
        place.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in documents()))
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not files or not all(path.is_file() for path in files):
        raise ConfigError(
            f"corpus={corpus!r} is neither a .jsonl file nor a folder of them, nor {SHIPPED!r}; give one."
        )
    return files


def texts_of(path: Path) -> Iterator[str]:
    """The first documents of a file."""
    num_bytes = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text: str = json.loads(line)["text"]
            yield text
            num_bytes += len(text.encode())
            if num_bytes > MOST_BYTES:
                return
