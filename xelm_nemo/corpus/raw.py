"""A corpus made from raw files of one language each, as mC4 comes: languages mixed, documents shuffled.

Every document draws a number from (seed, file, line). The number says which shard it goes to and where it
stands there, so that the order is a uniform shuffle that depends on nothing else: not on the order of the
files, nor on how many processes work. First each group of files deals its documents into buckets, then each
shard sorts its buckets, one in memory at a time.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo.corpus.bad_lines import Skipped
from xelm_nemo.corpus.documents import checked_rows
from xelm_nemo.errors import CorpusError
from xelm_nemo.files import atomic_file, room_for

FILE = "mc4.jsonl"  # what X-ELM calls each shard's file
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".parquet")
_MC4 = re.compile(r"c4-(?P<lang>[\w-]+?)(-validation)?\.tfrecord-")
_RENAMED = {"iw": "he"}  # mC4's code of Hebrew is an old one
_BUCKET_BYTES = 64 << 20  # of a bucket, about, and of what is held back while documents are dealt
_COMPRESSION = 4  # text is about so much larger than its compressed file
_KEY_LETTERS = 16  # a 64-bit number in hexadecimal


@dataclass(frozen=True)
class RawFile:
    """A raw file.

    Attributes:
        path: where it is.
        name: its path from the raw folder.
        lang: the language of every line.
        is_valid: whether it is for validation; such a file has "validation" in its name.
    """

    path: Path
    name: str
    lang: str
    is_valid: bool

    @property
    def splits(self) -> list[str]:
        """Where its documents go: those for validation twice, among all and among their language's."""
        return ["valid", f"valid_{self.lang}"] if self.is_valid else ["train"]


@dataclass(frozen=True)
class Deal:
    """Files whose documents one process deals into buckets.

    Attributes:
        files: the files.
        buckets: split -> number of its buckets, over all shards.
        folder: for `<split>.<bucket>`.
        seed: of the order.
        text_key: where a row has its text.
        lang_key: where it gets its language.
        skip_bad: whether lines without a document are left out.
    """

    files: Sequence[RawFile]
    buckets: dict[str, int]
    folder: Path
    seed: int
    text_key: str
    lang_key: str
    skip_bad: bool


@dataclass(frozen=True)
class MakeShard:
    """One shard of the corpus.

    Attributes:
        split: for example "train".
        buckets: those of this shard, in order.
        folders: of all deals.
        path: the file to write.
    """

    split: str
    buckets: range
    folders: Sequence[Path]
    path: Path


def list_raw(folder: Path, languages: Collection[str] | None) -> list[RawFile]:
    """The raw files of a folder by name: mC4's `c4-<lang>.tfrecord-*.json.gz`, or `<lang>/<any name>`.

    Args:
        folder: the raw folder.
        languages: those to take; None: all.

    Raises:
        CorpusError: there is none, a language has no training file, or no file is for validation.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(_SUFFIXES))
    files = [_raw_file(folder, path) for path in paths]
    files = [file for file in files if languages is None or file.lang in languages]
    trained = {file.lang for file in files if not file.is_valid}
    missing = sorted(set(languages or ()) - trained)
    if not trained or missing:
        of = f" of {' '.join(missing)}" if missing else ""
        raise CorpusError(
            f"corpus.raw={str(folder)!r} has no training file{of}; put mC4's c4-<lang>.tfrecord-*.json.gz "
            "there, or a folder <lang>/ with .jsonl[.gz|.zst], .json[.gz|.zst] or .parquet for each language."
        )
    if not any(file.is_valid for file in files):
        raise CorpusError(
            f"corpus.raw={str(folder)!r} has no file for validation; name one with 'validation' in it."
        )
    return files


def plan(files: Sequence[RawFile], num_shards: int) -> tuple[dict[str, int], dict[str, int]]:
    """For each split its number of shards, and of buckets, a multiple of the former."""
    sizes = Counter[str]()
    for file in files:
        grown = 1 if file.path.suffix in (".json", ".jsonl") else _COMPRESSION
        for split in file.splits:
            sizes[split] += file.path.stat().st_size * grown
    shards = {split: num_shards if split == "train" else 1 for split in sorted(sizes)}
    buckets = {split: n * (1 + sizes[split] // n // _BUCKET_BYTES) for split, n in shards.items()}
    return shards, buckets


def deal(task: Deal) -> dict[str, Any]:
    """Deal the documents of some files into buckets, lines of `<number> <row>`.

    Returns:
        JSON values: `documents`, split -> language -> number, and `skipped`, the bad lines of each file.

    Raises:
        CorpusError: a file cannot be read, or has a line without a document.
    """
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    documents, skipped = defaultdict[str, Counter[str]](Counter), list[dict[str, Any]]()
    held, held_bytes = defaultdict[str, list[bytes]](list), 0
    for file in task.files:
        bad = Skipped(file.name)
        on_bad = bad.add if task.skip_bad else None
        for index, row in checked_rows(file.path, (task.text_key,), task.lang_key, None, on_bad):
            draw = hashlib.blake2b(f"{task.seed}|{file.name}|{index}".encode(), digest_size=8).digest()
            row.pop("id", None)
            row[task.lang_key] = file.lang
            content = json.dumps(row, ensure_ascii=False, default=str).encode(errors="replace")
            line = b"%s %s\n" % (draw.hex().encode(), content)
            for split in file.splits:
                bucket = int.from_bytes(draw) * task.buckets[split] >> 64
                held[f"{split}.{bucket}"].append(line)
                documents[split][file.lang] += 1
                held_bytes += len(line)
            if held_bytes > _BUCKET_BYTES:
                _append(task.folder, held)
                held_bytes = 0
        skipped.append(bad.as_json())
    _append(task.folder, held)
    return {"documents": documents, "skipped": skipped}


def make_shard(task: MakeShard) -> None:
    """Write a shard from its buckets, its lines numbered from 0 under `id`."""
    index = 0
    with atomic_file(task.path) as file:
        for bucket in task.buckets:
            paths = [folder / f"{task.split}.{bucket}" for folder in task.folders]
            lines = [line for path in paths if path.is_file() for line in path.open("rb")]
            for line in sorted(lines):
                file.write(b'{"id": %d, %s' % (index, line[_KEY_LETTERS + 2 :]))
                index += 1


def _raw_file(folder: Path, path: Path) -> RawFile:
    name = path.relative_to(folder).as_posix()
    match = _MC4.match(path.name)
    if match is None and "/" not in name:
        raise CorpusError(
            f"{path} is of no known language; name it c4-<lang>.tfrecord-*, or put it into a folder <lang>/."
        )
    lang = match["lang"] if match else name.partition("/")[0]
    return RawFile(path, name, _RENAMED.get(lang, lang), "validation" in path.name)


def _append(folder: Path, held: dict[str, list[bytes]]) -> None:
    """Write what was held back behind what is in the buckets; without open files between the calls."""
    with room_for(folder):
        for name, lines in held.items():
            with (folder / name).open("ab") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
    held.clear()
