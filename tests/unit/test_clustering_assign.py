import json

import pytest

from xelm_nemo.clustering.assign import read_assignment, write_assignment
from xelm_nemo.errors import ArtifactError

ROWS = [
    ("train/00000/a.jsonl|0", 2),
    ("train/00000/a.jsonl|1", 0),
    ("train/00001/b|c.jsonl|0", 1),
    ("valid/00000/a.jsonl|0", 2),
]


def test_what_is_written_is_read_back_split_by_split(tmp_path):
    write_assignment(tmp_path, ROWS)
    assert read_assignment(tmp_path, "train", num_clusters=3) == dict(ROWS[:3])
    assert read_assignment(tmp_path, "valid") == dict(ROWS[3:])


def test_files_mirror_the_corpus_line_by_line(tmp_path):
    write_assignment(tmp_path, ROWS)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl"))
    assert files == ["train/00000/a.jsonl", "train/00001/b|c.jsonl", "valid/00000/a.jsonl"]
    lines = (tmp_path / "train/00000/a.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"sp_id": "train/00000/a.jsonl|1", "cluster": 0}


def test_upstreams_escaped_slashes_are_understood(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jsonl").write_text('{"sp_id":"train\\/00000\\/a.jsonl|0","cluster":1}\n')
    assert read_assignment(tmp_path, "train") == {"train/00000/a.jsonl|0": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not"),
        ("[]", "is not"),
        ('{"sp_id": "x|0"}', "cluster"),
        ('{"sp_id": 5, "cluster": 0}', "sp_id=5"),
        ('{"sp_id": "x|0", "cluster": 1.0}', r"cluster=1\.0"),
        ('{"sp_id": "x|0", "cluster": true}', "cluster=True"),
        ('{"sp_id": "x|0", "cluster": -1}', r"cluster=-1, not in 0 to 2"),
        ('{"sp_id": "x|0", "cluster": 3}', r"cluster=3, not in 0 to 2"),
        ('{"sp_id": "a|0", "cluster": 1}', "a second time"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "train/00000/a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"sp_id": "a|0", "cluster": 0}}\n{line}\n')
    with pytest.raises(ArtifactError, match=message) as caught:
        read_assignment(tmp_path, "train", num_clusters=3)
    assert str(caught.value).startswith(f"{path}:2 ")


def test_a_missing_split_says_which_command_makes_it(tmp_path):
    with pytest.raises(ArtifactError, match="run `cluster` first"):
        read_assignment(tmp_path, "test")
