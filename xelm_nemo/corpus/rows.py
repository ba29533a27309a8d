"""Rows of a corpus file of any format: one JSON object a line, or one row of a Parquet table."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xelm_nemo.corpus.bad_lines import BadLine
from xelm_nemo.corpus.lines import LONGEST_LINE_BYTES, LastLine, read_lines
from xelm_nemo.errors import CorpusError, first_line

Row = dict[str, Any]
_PARQUET_ROWS = 256  # read at once
_ONE_OBJECT = "each line must be one JSON object"


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row | BadLine]:
    """Each line or row of a file in order, or what is wrong with it.

    Args:
        path: ends in .parquet, or in .gz or .zst, or is plain JSON lines.
        columns: those of a Parquet file to read; None: all. Lines come whole.

    Raises:
        CorpusError: the file cannot be read at all.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, columns)
        else:
            for line in read_lines(path):
                yield line if isinstance(line, BadLine) else _parse(line)
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read ({error.strerror or error}); check the file and its rights."
        ) from error


def _parse(line: bytes) -> Row | BadLine:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadLine("not UTF-8", f"is not UTF-8 (byte {error.start})", "convert the file to UTF-8")
    except (ValueError, RecursionError) as error:
        return _not_json(line, error)
    if not isinstance(row, dict):
        return BadLine("no object", f"is a JSON {type(row).__name__}", _ONE_OBJECT)
    return row


def _not_json(line: bytes, error: Exception) -> BadLine:
    if b"\0" in line:
        return BadLine("NUL", "has a NUL byte, as a file has after a crash", "write the file again")
    if not line.strip():
        return BadLine("empty", "is empty", _ONE_OBJECT)
    if isinstance(line, LastLine):
        return BadLine("torn", f"is torn: the file ends in the middle of it ({error})", "write it again")
    return BadLine("not JSON", f"is not JSON ({error})", _ONE_OBJECT)


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row | BadLine]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise CorpusError(f"{path} needs pyarrow to be read; `pip install -e .[parquet]`.") from error
    try:
        with ParquetFile(path) as file:
            wanted = (
                None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            )
            for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted):
                yield from _batch_rows(batch)
    except (ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        reason = first_line(error)
        yield BadLine("damaged Parquet", f"is where the file is damaged ({reason:.100})", "write it again")


def _batch_rows(batch: Any) -> Iterator[Row | BadLine]:
    if batch.num_columns == 0:  # such rows have no other length than this
        yield from ({} for _ in range(batch.num_rows))
        return
    try:
        yield from map(_short_enough, batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield BadLine("not UTF-8", "has a string that is not UTF-8", "write the file again")
        else:
            for index in range(batch.num_rows):
                yield from _batch_rows(batch.slice(index, 1))


def _short_enough(row: Row) -> Row | BadLine:
    longest = max((len(value) for value in row.values() if isinstance(value, str)), default=0)
    if longest > LONGEST_LINE_BYTES:
        limit = LONGEST_LINE_BYTES >> 20
        return BadLine(
            "too long", f"has a string of more than {limit} million letters", "divide the document"
        )
    return row
