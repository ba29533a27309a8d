import json
from pathlib import Path

import pytest

from xelm_nemo.corpus.documents import Document, read_documents, read_shard
from xelm_nemo.corpus.layout import list_files
from xelm_nemo.errors import CorpusError


def write(root: Path, name: str, *rows) -> Path:
    """A corpus file; a row is JSON, or bytes as they are."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    )
    return path


def test_documents_come_in_shard_file_and_line_order_with_stable_ids(tmp_path):
    write(tmp_path, "train/10/a.jsonl", {"text": "last"})
    for shard in range(1, 10):
        write(tmp_path, f"train/{shard}/a.jsonl", {"text": f"shard {shard}"})
    write(tmp_path, "train/0/b.jsonl", {"text": "third"})
    write(tmp_path, "train/0/a.jsonl", {"text": "first", "lang": "en"}, {"text": "second", "lang": None})
    documents = list(read_documents(tmp_path, "train"))
    assert documents[:3] == [
        Document("train/0/a.jsonl|0", "first", "en"),
        Document("train/0/a.jsonl|1", "second", None),
        Document("train/0/b.jsonl|0", "third", None),
    ]
    assert documents[-1].sp_id == "train/10/a.jsonl|0"


def test_a_shard_can_be_read_alone(tmp_path):
    for shard in range(3):
        write(tmp_path, f"train/{shard:05}/a.jsonl", {"text": f"shard {shard}"})
    assert [document.text for document in read_shard(tmp_path, "train/00001")] == ["shard 1"]
    with pytest.raises(
        CorpusError, match=r"no shard 'train/1' with documents; use one of \['train/00000', 'train/00001'"
    ):
        list(read_shard(tmp_path, "train/1"))


def test_the_keys_of_text_and_language_can_be_chosen(tmp_path):
    write(tmp_path, "valid/00000/a.jsonl", {"body": "x", "language": "sw", "text": 3})
    [document] = read_documents(tmp_path, "valid", text_key="body", lang_key="language")
    assert (document.text, document.lang) == ("x", "sw")


def test_line_separators_inside_a_text_do_not_end_its_line(tmp_path):
    text = "one\u2028two\x85three\r\nfour"
    write(
        tmp_path, "train/0/a.jsonl", json.dumps({"text": text}, ensure_ascii=False).encode(), {"text": "next"}
    )
    assert [d.text for d in read_documents(tmp_path, "train")] == [text, "next"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', "is not JSON"),
        (b"", "is empty"),
        (b'{"text": "a\x00b"}', "NUL byte"),
        (b'{"text": "a\\u0000b"}', "NUL character"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "is a JSON list"),
        (b'{"text": "\xff"}', r"is not UTF-8 \(byte 10\)"),
        (b'{"txt": "x"}', r"no 'text' among \['txt'\]"),
        (b'{"text": ""}', "text=''"),
        (b'{"text": " \\n\\u3000"}', "text="),
        (b'{"text": 5}', "text=5"),
        (b'{"text": null}', "text=None"),
        (b'{"text": "\\ud800"}', "half a surrogate pair in 'text'"),
        (b'{"text": "x", "lang": "\\udc00"}', "half a surrogate pair in 'lang'"),
        (b'{"text": "x", "lang": 1}', "lang=1"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path, "train/00000/a.jsonl", {"text": "fine"}, line)
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_documents(tmp_path, "train"))
    assert str(caught.value).startswith(f"{path}:2 ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_missing_split_names_the_key_and_the_layout(tmp_path):
    with pytest.raises(CorpusError, match=r"corpus\.path=.*train/00000/\*\.jsonl"):
        list_files(tmp_path, "train")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "train/0/a.jsonl").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"a\.jsonl cannot be read"):
        list(read_documents(tmp_path, "train"))


@pytest.mark.parametrize("shards", [["00001"], ["0", "2"], ["0", "00"], ["0", "one"], ["0", "-1"], ["²"]])
def test_shards_that_are_not_numbered_without_gaps_are_named(tmp_path, shards):
    for shard in shards:
        write(tmp_path, f"train/{shard}/a.jsonl", {"text": "x"})
    with pytest.raises(CorpusError, match="numbered from 0 without gaps") as caught:
        list_files(tmp_path, "train")
    assert all(repr(shard) in str(caught.value) for shard in shards)


def test_a_file_beside_the_shards_is_not_skipped_in_silence(tmp_path):
    write(tmp_path, "train/0/a.jsonl", {"text": "x"})
    write(tmp_path, "train/stray.jsonl", {"text": "x"})
    with pytest.raises(CorpusError, match=r"stray\.jsonl"):
        list_files(tmp_path, "train")


@pytest.mark.parametrize("name", ["b.json.gz", "b.jsonl.bz2", "b.zip", "b.parquet.zst"])
def test_data_in_another_format_is_not_skipped_in_silence(tmp_path, name):
    write(tmp_path, "train/0/a.jsonl", {"text": "x"})
    write(tmp_path, f"train/0/{name}", b"")
    with pytest.raises(CorpusError, match=name):
        list_files(tmp_path, "train")


def test_hidden_files_and_notes_are_passed_over(tmp_path):
    path = write(tmp_path, "train/0/a.jsonl", {"text": "x"})
    write(tmp_path, "train/.DS_Store", b"")
    write(tmp_path, "train/0/README.md", b"")
    assert list_files(tmp_path, "train") == [path]


@pytest.mark.parametrize("name", ["train/0/README.md", "train/.keep"])
def test_a_split_without_documents_is_an_error(tmp_path, name):
    write(tmp_path, name, b"")
    with pytest.raises(CorpusError, match=r"holds no \*\.jsonl"):
        list_files(tmp_path, "train")
