"""Documents of a corpus folder, each with an id that stays the same.

Layout: `<root>/<split>/<shard>/<file>.jsonl`, one JSON object a line. Shard folders are numbered from
0 without gaps; zeros in front are allowed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo.errors import CorpusError

_UNREAD_SUFFIXES = (".gz", ".zst", ".parquet")  # data that must not be skipped in silence


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        sp_id: `<split>/<shard>/<file>|<line>`, the path from the corpus folder and the line from 0.
        text: never blank.
        lang: language code, None when the line has none.
    """

    sp_id: str
    text: str
    lang: str | None


def read_documents(
    root: Path, split: str, *, text_key: str = "text", lang_key: str = "lang"
) -> Iterator[Document]:
    """Every document of a split, shard by shard, file by file, line by line.

    Raises:
        CorpusError: as `list_files` and `read_file`.
    """
    for path in list_files(root, split):
        yield from read_file(root, path, text_key=text_key, lang_key=lang_key)


def read_shard(
    root: Path, shard: str, *, text_key: str = "text", lang_key: str = "lang"
) -> Iterator[Document]:
    """Every document of a shard, `<split>/<shard>`, file by file, line by line.

    Raises:
        CorpusError: there is no such shard in the split; or as `list_files` and `read_file`.
    """
    split, _, name = shard.strip("/").rpartition("/")
    files = list_files(root, split)
    if all(path.parent.name != name for path in files):
        shards = _abridged(sorted({f"{split}/{path.parent.name}" for path in files}))
        raise CorpusError(f"{root} has no shard {shard!r} with .jsonl files; use one of {shards}.")
    for path in files:
        if path.parent.name == name:
            yield from read_file(root, path, text_key=text_key, lang_key=lang_key)


def list_files(root: Path, split: str) -> list[Path]:
    """The `.jsonl` files of a split, by shard number, then by name.

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
    unread = [path for path in files if path.suffix in _UNREAD_SUFFIXES]
    if unread:
        raise CorpusError(
            f"{unread[0]} is not read, only .jsonl is; convert it, or move it out of the corpus."
        )
    found = [path for path in files if path.suffix == ".jsonl"]
    if not found:
        raise CorpusError(f"{folder} holds no *.jsonl; put them into {folder / '00000'}.")
    return found


def read_file(
    root: Path, path: Path, *, text_key: str = "text", lang_key: str = "lang"
) -> Iterator[Document]:
    """Every document of one `.jsonl` file of the corpus folder `root`.

    Raises:
        CorpusError: the file cannot be opened; or, with `file:line`, a line that is not a JSON object in
            UTF-8 with a non-blank text.
    """
    sp_path = path.relative_to(root).as_posix()
    try:
        with path.open("rb") as file:
            for index, line in enumerate(file):
                try:
                    text, lang = _parse(line, text_key, lang_key)
                except ValueError as error:
                    raise CorpusError(f"{path}:{index + 1} {error}") from error
                yield Document(f"{sp_path}|{index}", text, lang)
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read ({error.strerror}); check the file and its rights."
        ) from error


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


def _parse(line: bytes, text_key: str, lang_key: str) -> tuple[str, str | None]:
    """Text and language of a line; ValueError says what is wrong and what to do."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start}); convert the file to UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}); each line must be one JSON object.") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a JSON {type(row).__name__}; each line must be one JSON object.")
    return _text(row, text_key), _lang(row, lang_key)


def _text(row: dict[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        found = f"{key}={text!r:.40}" if key in row else f"no {key!r} among {list(row)}"
        raise ValueError(f"has {found}; each document needs text (its key is corpus.text_key).")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"has half a surrogate pair in {key!r}, which no tokenizer can read; remove it."
        ) from error
    return text


def _lang(row: dict[str, Any], key: str) -> str | None:
    lang = row.get(key)
    if lang is not None and not isinstance(lang, str):
        raise ValueError(f"has {key}={lang!r:.40}; a language is a string (its key is corpus.lang_key).")
    return lang or None
