"""Files that are either whole or absent: atomic writes, hashes, JSON and safetensors. No pickle."""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.errors import ArtifactError, ConfigError

WORK = ".work"  # in a folder that is being made: what helps to go on; it is gone when the folder is whole
_MADE_FROM = f"{WORK}/made_from"
_HASH_CHUNK_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` so that a reader, or a kill at any moment, sees the old file or the new one."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write that takes its name when the block ends without an error.

    Raises:
        ArtifactError: its folder cannot be made, or there is no room for it; an older file of the name is as
            it was.
    """
    part = _part_of(path)  # one name: what a kill leaves is written over next time
    with room_for(path):
        _make_folder(path.parent)
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink()
            raise
        part.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Say in one line that there was no room to write `path`.

    Raises:
        ArtifactError: the disk is full, or a limit of the user or the process is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ArtifactError(
            f"{path} cannot be written ({error.strerror}); what was there is as it was: make room, and run "
            "the same command again."
        ) from error


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a folder among the temporary files, which is gone when the block ends.

    Raises:
        ArtifactError: there is no room for what is written there.
    """
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise ArtifactError(
                f"{folder} cannot be written ({os.strerror(error.errno)}); set TMPDIR to a folder with "
                "more room."
            ) from error


@contextlib.contextmanager
def atomic_folder(path: Path, *, resume: str | None = None) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` when the block ends without an error.

    A folder already at `path` is replaced. What an earlier kill or error left half-written is removed;
    unless `resume` is given and was given then too: what is left is then yielded again.

    Args:
        path: the folder's name.
        resume: says what the content is made from.

    Raises:
        ArtifactError: it cannot be made here, or there is no room for it.
    """
    old = path.with_name(f".{path.name}.old")
    with room_for(path):
        _make_folder(path.parent)
        remove(old)
        part = begin_folder(path, resume)
        try:
            yield part
        except BaseException:
            if resume is None:
                remove(part)
            raise
        remove(part / WORK)
        for file in part.rglob("*"):
            _sync(file)
        _sync(part)
        if path.exists():
            path.rename(old)
        part.rename(path)
        _sync_folder(path.parent)
        remove(old)


def begin_folder(path: Path, resume: str | None) -> Path:
    """The folder that `atomic_folder` yields: what is left of one with the same `resume`, or else empty."""
    part = begun_folder(path, resume)
    if part is None:
        part = _part_of(path)
        _make_folder(path.parent)
        remove(part)
        _make_folder(part)
        if resume is not None:
            write_atomic(part / _MADE_FROM, resume)
    return part


def begun_folder(path: Path, resume: str | None) -> Path | None:
    """What is left of the folder that `atomic_folder` yielded with the same `resume`, if there is any."""
    made_from = _part_of(path) / _MADE_FROM
    is_left = resume is not None and made_from.is_file() and made_from.read_text() == resume
    return _part_of(path) if is_left else None


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_each(paths: Sequence[Path]) -> list[str]:
    """The hashes of several files, taken side by side."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(sha256, paths))


def read_ahead(folder: Path) -> None:
    """Have the system read a folder's files into its cache meanwhile; where it cannot, nothing happens."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def fingerprint(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, the same for the same value whatever its key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        ArtifactError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the command that makes it first.") from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); a file of JSON belongs there."
        ) from error
    except (ValueError, RecursionError) as error:  # the latter for lists within lists without end
        raise ArtifactError(f"{path} is not JSON ({error}); delete it and run the command again.") from error


def write_json(path: Path, value: Any, *, only_if_changed: bool = False) -> None:
    """Write a JSON value atomically, indented, in Unicode; if asked, only where the file says otherwise."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    if not (only_if_changed and path.is_file() and path.read_bytes() == text.encode()):
        write_atomic(path, text)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as safetensors, and read them back to be sure.

    safetensors stores the memory of an array that is not C-contiguous in the wrong order without a
    word (`TruncatedSVD.components_` is one), so every array is copied to C order first. Its own way to write
    a file says of a full disk what nobody else does.

    Raises:
        ArtifactError: there is no room for the file; an older one is as it was.
    """
    from safetensors.numpy import load_file, save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_file(path) as file:
        file.write(save(contiguous))
        file.flush()
        for name, array in load_file(file.name).items():
            if not np.array_equal(array, arrays[name]):
                raise ArtifactError(
                    f"{path}: array {name!r} changed while it was written; is the disk sound?"
                )


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The named arrays of a safetensors file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the command that makes it first.") from error
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); delete its folder and run the command again."
        ) from error


def config_folder() -> Path:
    """Where the YAML files are, in a checkout and in an installed package alike."""
    spec = importlib.util.find_spec("xelm_configs")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the configuration files are not installed; run `pip install -e .` in the checkout."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        raise ArtifactError(
            f"{path} cannot be made or written to ({error.strerror}: {error.filename}); "
            "name a folder that can."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    _sync(path)
