"""A corpus from raw files: everything is in it once, in an order that depends on the seed alone."""

import gzip
import json
from itertools import pairwise

import pytest

from xelm_nemo.corpus import raw
from xelm_nemo.corpus.raw import Deal, MakeShard, deal, list_raw, make_shard, plan
from xelm_nemo.errors import CorpusError

NAMES = {
    "c4-de.tfrecord-00000-of-00002.json.gz": ("de", 30),
    "c4-de.tfrecord-00001-of-00002.json.gz": ("de", 20),
    "c4-iw.tfrecord-00000-of-00001.json.gz": ("he", 25),
    "c4-de-validation.tfrecord-00000-of-00001.json.gz": ("de", 4),
    "c4-iw-validation.tfrecord-00000-of-00001.json.gz": ("he", 3),
}


@pytest.fixture
def folder(tmp_path):
    """Two languages of mC4; every document names its file and line."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, (_, count) in NAMES.items():
        rows = [{"text": f"{name} {n}", "timestamp": "2019", "id": "old"} for n in range(count)]
        (folder / name).write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return folder


def make(folder, output, *, seed=1, num_shards=2, parts=1, skip_bad=False):
    """Deal in so many parts, then make all shards; split -> shards -> rows, and the results of the deals."""
    files = list_raw(folder, None)
    shards, buckets = plan(files, num_shards)
    folders = [output / "buckets" / str(part) for part in range(parts)]
    results = [
        deal(Deal(files[part::parts], buckets, folders[part], seed, "text", "lang", skip_bad))
        for part in reversed(range(parts))
    ]
    made = {}
    for split, number in shards.items():
        each = buckets[split] // number
        paths = [output / split / f"{shard:05}" / raw.FILE for shard in range(number)]
        for shard, path in enumerate(paths):
            make_shard(MakeShard(split, range(shard * each, (shard + 1) * each), folders, path))
        made[split] = [[json.loads(line) for line in path.open()] for path in paths]
    return made, results


def texts(shards):
    return [row["text"] for shard in shards for row in shard]


def test_every_document_is_there_once_under_its_language_numbered_by_line(folder, tmp_path):
    made, _ = make(folder, tmp_path / "out")
    assert set(made) == {"train", "valid", "valid_de", "valid_he"}
    training = [
        f"{name} {n}" for name, (_, count) in NAMES.items() for n in range(count) if "valid" not in name
    ]
    assert sorted(texts(made["train"])) == sorted(training)
    for shards in made.values():
        for shard in shards:
            assert [row["id"] for row in shard] == list(range(len(shard)))
            assert all(row["lang"] == NAMES[row["text"].split()[0]][0] for row in shard)
            assert all(row["timestamp"] == "2019" for row in shard)


def test_validation_is_there_in_all_and_by_language(folder, tmp_path):
    made, _ = make(folder, tmp_path / "out")
    assert sorted(texts(made["valid"])) == sorted(texts(made["valid_de"]) + texts(made["valid_he"]))
    assert len(texts(made["valid_he"])) == 3


def test_languages_are_mixed_and_the_seed_chooses_the_order(folder, tmp_path):
    one, _ = make(folder, tmp_path / "one")
    two, _ = make(folder, tmp_path / "two", seed=2)
    assert texts(one["train"]) != texts(two["train"])
    first = [row["lang"] for row in one["train"][0]]
    changes = sum(a != b for a, b in pairwise(first))
    assert changes > len(first) / 4


def test_order_depends_neither_on_the_number_of_deals_nor_on_the_size_of_buckets(
    folder, tmp_path, monkeypatch
):
    made, _ = make(folder, tmp_path / "one")
    assert make(folder, tmp_path / "three", parts=3)[0] == made
    monkeypatch.setattr(raw, "_BUCKET_BYTES", 200)  # many buckets, many flushes
    assert make(folder, tmp_path / "small", parts=2)[0] == made


def test_what_a_killed_deal_left_is_not_dealt_twice(folder, tmp_path):
    make(folder, tmp_path / "out")
    made, _ = make(folder, tmp_path / "out")
    assert len(texts(made["train"])) == 75


def test_bad_lines_of_raw_files_are_refused_or_counted(folder, tmp_path):
    path = folder / "c4-de.tfrecord-00000-of-00002.json.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b"{\n"))
    with pytest.raises(CorpusError, match=r"of-00002\.json\.gz:31 is not JSON"):
        make(folder, tmp_path / "out")
    made, results = make(folder, tmp_path / "out", skip_bad=True)
    assert len(texts(made["train"])) == 75
    [bad] = [file for result in results for file in result["skipped"] if file["bad_lines"]]
    assert (bad["file"], bad["lines"]) == (path.name, [(31, "not JSON")])


def test_folders_of_languages_are_understood(tmp_path):
    for name in ("sw/a.jsonl", "sw/validation.jsonl", "de/x/b.parquet", "de/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [(file.name, file.lang, file.is_valid) for file in list_raw(tmp_path, None)]
    expected = [
        ("de/x/b.parquet", "de", False),
        ("sw/a.jsonl", "sw", False),
        ("sw/validation.jsonl", "sw", True),
    ]
    assert found == expected


def test_chosen_languages_are_taken_and_missed(folder):
    assert {file.lang for file in list_raw(folder, ["he"])} == {"he"}
    with pytest.raises(CorpusError, match="has no training file of sw"):
        list_raw(folder, ["he", "sw"])


@pytest.mark.parametrize(
    "names, said",
    [
        ([], "has no training file; put mC4's"),
        (["de/a.jsonl"], "has no file for validation"),
        (["a.jsonl"], r"a\.jsonl is of no known language"),
    ],
)
def test_folder_that_cannot_be_made_into_a_corpus(tmp_path, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match=said):
        list_raw(tmp_path, None)
