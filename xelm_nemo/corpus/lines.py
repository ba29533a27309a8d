"""Lines of plain and compressed files in bounded memory, whatever the files hold."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xelm_nemo.corpus.bad_lines import BadLine

LONGEST_LINE_BYTES = 16 << 20  # of JSON; a longer line is bad, and at most this much of it is in memory
_BLOCK_BYTES = 1 << 20


class LastLine(bytes):
    """A last line that no newline ends: whole, or torn."""


def read_lines(path: Path) -> Iterator[bytes | BadLine]:
    """Each line of a file without its newline, or what is wrong with it.

    Where compressed data are damaged or end too early, the line they break in is bad and is the last.

    Raises:
        OSError: the file cannot be read.
    """
    start, length = bytearray(), 0  # the line whose end has not come yet; empty once it is too long
    for block in _blocks(path):
        if isinstance(block, BadLine):
            yield block
            return
        *ends, rest = block.split(b"\n")
        for end in ends:
            length += len(end)
            if length > LONGEST_LINE_BYTES:
                yield _too_long()
            else:
                yield bytes(start + end) if start else end
            if start:
                start = bytearray()
            length = 0
        length += len(rest)
        if length > LONGEST_LINE_BYTES:
            start = bytearray()
        else:
            start += rest  # in place: blocks may be small, and the line long
    if length > LONGEST_LINE_BYTES:
        yield _too_long()
    elif start:
        yield LastLine(start)


def _blocks(path: Path) -> Iterator[bytes | BadLine]:
    with _open(path) as file:
        damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
        if path.suffix == ".zst":
            from backports.zstd import ZstdError

            damage += (ZstdError,)
        try:
            if path.suffix == ".gz" and not path.stat().st_size:  # which gzip takes for an empty text
                raise EOFError("the file is empty")
            while block := file.read1(_BLOCK_BYTES):
                yield block
        except damage as error:
            said = f"is where the compressed data are damaged or end too early ({error})"
            yield BadLine("damaged compression", said, "copy or compress the file again")


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        from backports import zstd  # the standard library's from Python 3.14 on

        return zstd.open(path)
    return path.open("rb")


def _too_long() -> BadLine:
    limit = LONGEST_LINE_BYTES >> 20
    return BadLine("too long", f"is longer than {limit} MiB", "divide the document")
