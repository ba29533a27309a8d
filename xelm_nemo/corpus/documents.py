"""Documents of a corpus folder, each with an id that stays the same."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xelm_nemo.corpus.bad_lines import BadLine, Skipped, skipped_line
from xelm_nemo.corpus.examples import example_text
from xelm_nemo.corpus.faults import Ids, fault
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
        source: of instruction data the beginning of the text that is not learned; None: all of it is.
    """

    sp_id: str
    text: str
    lang: str | None
    source: str | None = None


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
    source_key: str | None = None,
    target_key: str | None = None,
    lang_key: str = "lang",
    id_key: str | None = "id",
    on_bad: Callable[[int, BadLine], None] | None = None,
) -> Iterator[Document]:
    """Every document of one file of the corpus folder `root`.

    Args:
        root: the corpus folder.
        path: a file in it.
        text_key: where a row has its text, unless the next two are given.
        source_key: where a row of instruction data has its source.
        target_key: where it has its target.
        lang_key: where it has its language, if it has one.
        id_key: where it may have an id that no other row of the file has; None: nobody looks.
        on_bad: told the index and the fault of each line that has no document; None: the first one ends it.

    Raises:
        CorpusError: the file cannot be read; or, with `file:line`, a line without a document.
    """
    sp_path = path.relative_to(root).as_posix()
    text_keys = (text_key,) if source_key is None or target_key is None else (source_key, target_key)
    columns = [*text_keys, *(key for key in (lang_key, id_key) if key is not None)]
    for index, row in checked_rows(path, text_keys, lang_key, id_key, on_bad, columns=columns):
        text, source = row[text_keys[0]], None
        if len(text_keys) > 1:
            text, source = example_text(*(row[key] for key in text_keys))
        yield Document(f"{sp_path}|{index}", text, row.get(lang_key) or None, source)


def checked_rows(
    path: Path,
    text_keys: tuple[str, ...],
    lang_key: str,
    id_key: str | None,
    on_bad: Callable[[int, BadLine], None] | None,
    *,
    columns: list[str] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Index and row of every line that has a document; see `read_file`."""
    seen = Ids(id_key)
    for index, row in enumerate(read_rows(path, columns)):
        bad = row if isinstance(row, BadLine) else fault(row, text_keys, lang_key) or seen.fault(row)
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
