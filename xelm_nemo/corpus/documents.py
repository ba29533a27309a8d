"""Documents of a corpus folder, each with an id that stays the same."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xelm_nemo.corpus.bad_lines import BadLine, Skipped, skipped_line
from xelm_nemo.corpus.layout import list_files, list_shard
from xelm_nemo.corpus.rows import Row, read_rows
from xelm_nemo.errors import CorpusError

log = logging.getLogger(__name__)

_BLOCK_DOCUMENTS, _BLOCK_LETTERS = 10_000, 16 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        sp_id: `<split>/<shard>/<file>|<line>`, the path from the corpus folder and the line or row from 0.
        text: never blank.
        lang: language code, None when the line has none.
    """

    sp_id: str
    text: str
    lang: str | None


def read_documents(
    root: Path, split: str, *, skip_bad: bool = False, quiet: bool = False, **keys: Any
) -> Iterator[Document]:
    """Every document of a split, shard by shard, file by file, line by line; see `read_file`.

    With `skip_bad` each file's bad lines are left out and, unless `quiet`, said in one line of the log.

    Raises:
        CorpusError: as `list_files` and `read_file`.
    """
    return _read_files(root, list_files(root, split), skip_bad, quiet, keys)


def read_shard(
    root: Path, shard: str, *, skip_bad: bool = False, quiet: bool = False, **keys: Any
) -> Iterator[Document]:
    """Every document of a shard, `<split>/<shard>`, as `read_documents` does a split's.

    Raises:
        CorpusError: as `list_shard` and `read_file`.
    """
    return _read_files(root, list_shard(root, shard), skip_bad, quiet, keys)


def _read_files(
    root: Path, paths: list[Path], skip_bad: bool, quiet: bool, keys: dict[str, Any]
) -> Iterator[Document]:
    for path in paths:
        skipped = Skipped(path.relative_to(root).as_posix())
        yield from read_file(root, path, on_bad=skipped.add if skip_bad else None, **keys)
        if skipped.lines and not quiet:
            log.warning("%s", skipped_line(skipped.as_json()))


def read_file(
    root: Path,
    path: Path,
    *,
    text_key: str = "text",
    lang_key: str = "lang",
    id_key: str | None = "id",
    on_bad: Callable[[int, BadLine], None] | None = None,
) -> Iterator[Document]:
    """Every document of one file of the corpus folder `root`.

    Args:
        root: the corpus folder.
        path: a file in it.
        text_key: where a row has its text.
        lang_key: where it has its language, if it has one.
        id_key: where it may have an id that no other row of the file has; None: nobody looks.
        on_bad: told the index and the fault of each line that has no document; None: the first one ends it.

    Raises:
        CorpusError: the file cannot be read; or, with `file:line`, a line without a document.
    """
    sp_path = path.relative_to(root).as_posix()
    columns = [key for key in (text_key, lang_key, id_key) if key is not None]
    for index, row in checked_rows(path, text_key, lang_key, id_key, on_bad, columns=columns):
        yield Document(f"{sp_path}|{index}", row[text_key], row.get(lang_key) or None)


def checked_rows(
    path: Path,
    text_key: str,
    lang_key: str,
    id_key: str | None,
    on_bad: Callable[[int, BadLine], None] | None,
    *,
    columns: list[str] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Index and row of every line that has a document; see `read_file`."""
    seen = _Ids(id_key)
    for index, row in enumerate(read_rows(path, columns)):
        bad = row if isinstance(row, BadLine) else _fault(row, text_key, lang_key) or seen.fault(row)
        if not isinstance(row, BadLine) and bad is None:
            yield index, row
        elif bad is not None and on_bad is not None:
            on_bad(index, bad)
        else:
            way_out = "or set corpus.on_bad_line=skip to go on without such lines"
            raise CorpusError(f"{path}:{index + 1} {bad}, {way_out}.")


def in_blocks(items: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """The items in lists that are short enough to be held in memory; `text` is the text of one."""
    block, letters = list[T](), 0
    for item in items:
        block.append(item)
        letters += len(text(item))
        if len(block) == _BLOCK_DOCUMENTS or letters > _BLOCK_LETTERS:
            yield block
            block, letters = [], 0
    if block:
        yield block


class _Ids:
    """The ids of a file. Lines that are numbered, as X-ELM's corpora have them, take no memory."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._run = range(0)
        self._others = set[str]()

    def fault(self, row: Row) -> BadLine | None:
        """Take the row's id, if it has one; a fault if an earlier row has the same."""
        value = None if self._key is None else row.get(self._key)
        if value is None or self._is_new(value):
            return None
        said = f"has {self._key}={value!r:.60} for a second time"
        return BadLine("duplicate id", said, "drop one, or set corpus.id_key=null to ignore ids")

    def _is_new(self, value: Any) -> bool:
        if type(value) is int and value in self._run:
            return False
        name = repr(value)
        if name in self._others:
            return False
        if type(value) is int and (not self._run or value == self._run.stop):
            self._run = range(self._run.start if self._run else value, value + 1)
        else:
            self._others.add(name)
        return True


def _fault(row: Row, text_key: str, lang_key: str) -> BadLine | None:
    """What keeps a row from being a document."""
    text, lang = row.get(text_key), row.get(lang_key)
    needs = "each document needs text (its key is corpus.text_key)"
    if text is None and text_key not in row:
        return BadLine("no text", f"has no {text_key!r} among {list(row)}"[:120], needs)
    if not isinstance(text, str):
        return BadLine("text is no string", f"has {text_key}={text!r:.40}", needs)
    if not text.strip():
        return BadLine("blank text", f"has {text_key}={text!r:.40}", needs)
    if "\0" in text:
        return BadLine("NUL", f"has a NUL character in {text_key!r}", "remove it")
    if lang is not None and not isinstance(lang, str):
        said = "a language is a string (its key is corpus.lang_key)"
        return BadLine("language is no string", f"has {lang_key}={lang!r:.40}", said)
    for key, value in ((text_key, text), (lang_key, lang or "")):
        try:
            value.encode()
        except UnicodeEncodeError:
            return BadLine("lone surrogate", f"has half a surrogate pair in {key!r}", "remove it")
    return None
