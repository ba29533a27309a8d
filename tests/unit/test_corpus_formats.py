"""Corpus files of every format, whole and broken."""

import gzip
import json
import random
import time
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from xelm_nemo.corpus import lines as corpus_lines
from xelm_nemo.corpus.bad_lines import Skipped, skipped_line
from xelm_nemo.corpus.documents import read_documents, read_file
from xelm_nemo.corpus.lines import LONGEST_LINE_BYTES, read_lines
from xelm_nemo.errors import CorpusError

ROWS = [{"text": f"document {n}\u2028人権", "lang": "en", "id": n} for n in range(3000)]
COMPRESS = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstd.compress}
GOOD = b'{"text": "good"}'
BAD_LINES = {
    "empty": b"",
    "not UTF-8": b'{"text": "\xff"}',
    "NUL": b"\0" * 50,
    "not JSON": b"{'text': 1}",
    "no object": b'["text"]',
    "no text": b'{"txt": "x"}',
    "text is no string": b'{"text": 5}',
    "blank text": b'{"text": " "}',
    "lone surrogate": b'{"text": "\\udc00"}',
    "lone surrogate in the language": b'{"text": "x", "lang": "\\ud800"}',
    "language is no string": b'{"text": "x", "lang": 5}',
    "duplicate id": b'{"text": "x", "id": "same"}',
}


def shard(tmp_path):
    folder = tmp_path / "train/00000"
    folder.mkdir(parents=True)
    return folder


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(root, path, **keys):
    """The documents of a file and what was skipped of it."""
    skipped = Skipped(path.relative_to(root).as_posix())
    return list(read_file(root, path, on_bad=skipped.add, **keys)), skipped


@pytest.mark.parametrize("name", [*COMPRESS, "a.parquet"])
def test_every_format_gives_the_same_documents_with_line_or_row_in_their_ids(tmp_path, name):
    path = shard(tmp_path) / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700)
    else:
        path.write_bytes(COMPRESS[name](lines(ROWS)))
    documents = list(read_documents(tmp_path, "train"))
    assert [(d.text, d.lang) for d in documents] == [(row["text"], row["lang"]) for row in ROWS]
    assert [d.sp_id for d in documents] == [f"train/00000/{name}|{n}" for n in range(len(ROWS))]


def test_members_of_a_gzip_file_are_one_file(tmp_path):
    path = shard(tmp_path) / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS[:2])) + gzip.compress(lines(ROWS[2:4])))
    assert [d.text for d in read_documents(tmp_path, "train")] == [row["text"] for row in ROWS[:4]]


@pytest.mark.parametrize("kind", BAD_LINES)
def test_each_kind_of_bad_line_is_counted_and_the_rest_read(tmp_path, kind):
    path = shard(tmp_path) / "a.jsonl"
    first = b'{"text": "good", "id": "same"}'
    path.write_bytes(b"\n".join([first, BAD_LINES[kind], GOOD]) + b"\n")
    documents, skipped = read(tmp_path, path)
    assert [d.sp_id for d in documents] == ["train/00000/a.jsonl|0", "train/00000/a.jsonl|2"]
    kind = kind.removesuffix(" in the language")
    assert skipped.kinds == {kind: 1}
    assert skipped.lines == [(2, kind)]


def test_error_names_file_line_and_both_ways_out(tmp_path):
    path = shard(tmp_path) / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + b"{\n")
    with pytest.raises(CorpusError) as caught:
        list(read_documents(tmp_path, "train"))
    said = str(caught.value)
    assert said.startswith(f"{path}:2 is not JSON") and "\n" not in said
    assert "each line must be one JSON object, or set corpus.on_bad_line=skip" in said


def test_last_line_may_lack_its_newline_but_not_its_end(tmp_path):
    path = shard(tmp_path) / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD)
    assert len(read(tmp_path, path)[0]) == 2
    path.write_bytes(GOOD + b"\n" + GOOD[:-3])
    documents, skipped = read(tmp_path, path)
    assert len(documents) == 1 and skipped.kinds == {"torn": 1}


def test_line_that_is_far_too_long_takes_bounded_memory(tmp_path):
    path = shard(tmp_path) / "a.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + GOOD + b"\n")
    tracemalloc.start()
    documents, skipped = read(tmp_path, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [d.sp_id[-2:] for d in documents] == ["|0", "|2"]
    assert skipped.lines == [(2, "too long")]
    assert peak < 3 * LONGEST_LINE_BYTES


def test_line_at_the_limit_is_read_and_one_byte_more_is_not(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * LONGEST_LINE_BYTES + b"\n" + b"x" * (LONGEST_LINE_BYTES + 1) + b"\nend\n")
    at, above, end = read_lines(path)
    assert (len(at), above.kind, end) == (LONGEST_LINE_BYTES, "too long", b"end")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_bomb_of_one_endless_line_takes_bounded_memory(tmp_path, name):
    path = shard(tmp_path) / name
    opener = gzip.open if name.endswith("gz") else zstd.open
    with opener(path, "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    documents, skipped = read(tmp_path, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (documents, skipped.kinds) == ([], {"too long": 1})
    assert peak < 3 * LONGEST_LINE_BYTES


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_compression_gives_what_is_whole_and_one_bad_line(tmp_path, name):
    path = shard(tmp_path) / name
    noise = random.Random(7)
    rows = [{"text": "".join(noise.choices("abcdefghij ", k=80)) + "."} for _ in range(4000)]
    whole = COMPRESS[name](lines(rows))
    for share in (0.1, 0.5, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        documents, skipped = read(tmp_path, path)
        assert [d.text for d in documents] == [row["text"] for row in rows[: len(documents)]]
        assert skipped.lines == [(len(documents) + 1, "damaged compression")]
        assert read(tmp_path, path) == (documents, skipped)
    with pytest.raises(CorpusError, match=f":{len(documents) + 1} is where the compressed data"):
        list(read_documents(tmp_path, "train"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_file_without_a_byte_is_damaged_and_one_of_an_empty_text_is_not(tmp_path, name):
    path = shard(tmp_path) / name
    path.touch()
    assert read(tmp_path, path)[1].lines == [(1, "damaged compression")]
    path.write_bytes(COMPRESS[name](b""))
    assert read(tmp_path, path)[1].lines == []


def test_long_line_in_small_blocks_takes_time_in_proportion_to_its_length(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (LONGEST_LINE_BYTES - 1) + b"\n")
    monkeypatch.setattr(corpus_lines, "_BLOCK_BYTES", 1024)
    start = time.process_time()
    [line] = read_lines(path)
    assert len(line) == LONGEST_LINE_BYTES - 1
    assert time.process_time() - start < 2


def test_parquet_without_the_text_or_without_its_end_is_said(tmp_path):
    path = shard(tmp_path) / "a.parquet"
    pq.write_table(pa.table({"body": ["x", "y"]}), path)
    assert read(tmp_path, path)[1].kinds == {"no text": 2}
    assert len(read(tmp_path, path, text_key="body")[0]) == 2
    path.write_bytes(path.read_bytes()[:-20])
    assert read(tmp_path, path)[1].kinds == {"damaged Parquet": 1}


def test_parquet_string_that_is_not_utf8_costs_one_row(tmp_path):
    path = shard(tmp_path) / "a.parquet"
    raw = pa.array([b"one", b"\xff", b"three"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), path)
    documents, skipped = read(tmp_path, path)
    assert [d.text for d in documents] == ["one", "three"]
    assert skipped.lines == [(2, "not UTF-8")]


def test_parquet_text_at_the_limit_is_read_and_one_letter_more_is_not(tmp_path):
    path = shard(tmp_path) / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * LONGEST_LINE_BYTES, "y" * (LONGEST_LINE_BYTES + 1), "z"]}), path)
    documents, skipped = read(tmp_path, path)
    assert [(d.sp_id[-2:], d.text[0]) for d in documents] == [("|0", "x"), ("|2", "z")]
    assert skipped.lines == [(2, "too long")]
    with pytest.raises(CorpusError, match=r"a\.parquet:2 has a string of more than 16 million letters"):
        list(read_documents(tmp_path, "train"))


@pytest.mark.parametrize(
    "ids, repeated",
    [
        ([0, 1, 2, 1], [4]),
        ([5, 6, 9, 7, 9, 6], [5, 6]),
        (["a", "b", "a", "a"], [3, 4]),
        ([3, 2, 3, 4, 4], [3, 5]),
        ([None, None, 1, "1"], []),
        ([[1], [1]], [2]),
    ],
)
def test_second_line_with_an_id_is_bad(tmp_path, ids, repeated):
    path = shard(tmp_path) / "a.jsonl"
    path.write_bytes(lines({"text": "x", "id": one} for one in ids))
    assert [line for line, _ in read(tmp_path, path)[1].lines] == repeated
    assert read(tmp_path, path, id_key=None)[1].lines == []


def test_same_id_in_two_files_is_fine(tmp_path):
    folder = shard(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(lines([{"text": "x", "id": 0}]))
    assert len(list(read_documents(tmp_path, "train"))) == 2


def test_report_of_a_file_says_how_many_of_which_kind():
    skipped = Skipped("train/00000/a.jsonl", Counter({"torn": 1, "empty": 2}), [(3, "empty")])
    said = skipped_line(skipped.as_json())
    assert said == "train/00000/a.jsonl: 3 bad lines skipped (2 empty, 1 torn), the first is line 3"


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_read_the_same_way_twice_and_never_crash(tmp_path, seed):
    """Flip, cut and paste bytes of good files; whatever comes out, each line is a document or is counted."""
    noise = random.Random(seed)
    name = noise.choice([*COMPRESS, "a.parquet"])
    path = shard(tmp_path) / name
    content = b"\n".join(noise.choices([GOOD, *BAD_LINES.values(), *lines(ROWS[:20]).splitlines()], k=60))
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS[:200]), path)
        data = bytearray(path.read_bytes())
    else:
        data = bytearray(COMPRESS[name](content))
    for _ in range(noise.randrange(6)):
        start = noise.randrange(len(data))
        damage = noise.choice([bytes([noise.randrange(256)]), noise.randbytes(30), b"\n", b'"', b"\\ud800"])
        data[start : start + noise.randrange(3)] = damage
    if noise.random() < 0.3:
        del data[noise.randrange(len(data)) :]
    path.write_bytes(data)
    first, second = read(tmp_path, path), read(tmp_path, path)
    assert first == second
    documents, skipped = first
    assert all(document.text.strip() for document in documents)
    if name == "a.jsonl":
        whole = bytes(data).split(b"\n")
        assert len(documents) + skipped.kinds.total() == len(whole) - (whole[-1] == b"")
