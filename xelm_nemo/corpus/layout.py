"""Where the files of a corpus are: `<root>/<split>/<shard>/<file>`.

Shard folders are numbered from 0 without gaps; zeros in front are allowed.
"""

import re
from pathlib import Path

from xelm_nemo.errors import CorpusError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_UNREAD_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")  # data that must not be skipped in silence


def list_files(root: Path, split: str) -> list[Path]:
    """The files with documents of a split, by shard number, then by name.

    Raises:
        CorpusError: no such folder, no such file in it, shards that are not numbered from 0 without
            gaps, or data in a format that is not read.
    """
    folder = root / split
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files = [path for shard in _in_order(folder, entries) for path in sorted(shard.iterdir())]
    except OSError as error:
        raise CorpusError(
            f"corpus.path={str(root)!r} cannot be read at {error.filename} ({error.strerror}); "
            f"give a folder that holds {split}/00000/*.jsonl."
        ) from error
    found = [path for path in files if path.name.endswith(SUFFIXES)]
    unread = [path for path in files if path.name.endswith(_UNREAD_SUFFIXES) and path not in set(found)]
    if unread:
        raise CorpusError(
            f"{unread[0]} is not read, only {', '.join(SUFFIXES)} are; convert it, or move it away."
        )
    if not found:
        raise CorpusError(f"{folder} holds no *.jsonl; put them into {folder / '00000'}.")
    return found


def list_shard(root: Path, shard: str) -> list[Path]:
    """The files with documents of a shard, `<split>/<shard>`, by name.

    Raises:
        CorpusError: there is no such shard in the split; or as `list_files`.
    """
    split, _, name = shard.strip("/").rpartition("/")
    files = list_files(root, split)
    found = [path for path in files if path.parent.name == name]
    if not found:
        shards = _abridged(sorted({f"{split}/{path.parent.name}" for path in files}))
        raise CorpusError(f"{root} has no shard {shard!r} with documents; use one of {shards}.")
    return found


def _in_order(folder: Path, shards: list[Path]) -> list[Path]:
    numbers = {path: int(path.name) for path in shards if re.fullmatch("[0-9]+", path.name)}
    if len(numbers) != len(shards) or sorted(numbers.values()) != list(range(len(shards))):
        names = [path.name for path in shards]
        raise CorpusError(
            f"{folder} holds {_abridged(names)}, which are not shard folders numbered from 0 without gaps; "
            "name them 00000, 00001, ..."
        )
    return sorted(shards, key=numbers.__getitem__)


def _abridged(names: list[str], limit: int = 8) -> str:
    return str(names) if len(names) <= limit else f"{names[:limit]} and {len(names) - limit} more"
