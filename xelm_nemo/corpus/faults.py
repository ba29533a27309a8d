"""What keeps a row of a corpus file from being a document."""

from typing import Any

from xelm_nemo.corpus.bad_lines import BadLine
from xelm_nemo.corpus.rows import Row


class Ids:
    """The ids of a file. Lines that are numbered, as X-ELM's corpora have them, take no memory."""

    def __init__(self, key: str | None) -> None:
        """Take the key of the id; None: nobody looks."""
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


def fault(row: Row, text_keys: tuple[str, ...], lang_key: str) -> BadLine | None:
    """The fault of a row, if it has one; `text_keys` are those of its text, or of source and target."""
    for key in text_keys:
        if bad := _text_fault(row, key, text_keys):
            return bad
    lang = row.get(lang_key)
    if lang is not None and not isinstance(lang, str):
        said = "a language is a string (its key is corpus.lang_key)"
        return BadLine("language is no string", f"has {lang_key}={lang!r:.40}", said)
    for key, value in (*((key, row[key]) for key in text_keys), (lang_key, lang or "")):
        try:
            value.encode()
        except UnicodeEncodeError:
            return BadLine("lone surrogate", f"has half a surrogate pair in {key!r}", "remove it")
    return None


def _need(row: Row, text_keys: tuple[str, ...]) -> str:
    """What a row without text needs."""
    if len(text_keys) > 1:
        return "each example needs both (their keys are corpus.source_key and corpus.target_key)"
    if text_keys[0] not in row and {"src", "tgt"} <= row.keys():
        return "for instruction data set corpus.source_key=src corpus.target_key=tgt"
    return "each document needs text (its key is corpus.text_key)"


def _text_fault(row: Row, key: str, text_keys: tuple[str, ...]) -> BadLine | None:
    text = row.get(key)
    if text is None and key not in row:
        return BadLine("no text", f"has no {key!r} among {list(row)}"[:120], _need(row, text_keys))
    if not isinstance(text, str):
        return BadLine("text is no string", f"has {key}={text!r:.40}", _need(row, text_keys))
    if not text.strip():
        return BadLine("blank text", f"has {key}={text!r:.40}", _need(row, text_keys))
    if "\0" in text:
        return BadLine("NUL", f"has a NUL character in {key!r}", "remove it")
    return None
