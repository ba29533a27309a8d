import json

import pytest

from xelm_nemo.clustering.assign import assignment_file, read_assignment, with_clusters, write_assignment
from xelm_nemo.corpus.documents import Document
from xelm_nemo.errors import ArtifactError

ROWS = [("train/00000/a|b.jsonl|0", 2), ("train/00000/a|b.jsonl|1", 0), ("train/00000/a|b.jsonl|5", 1)]


def documents(*sp_ids):
    return [Document(sp_id, "text", None) for sp_id in sp_ids]


def test_what_is_written_is_read_back(tmp_path):
    write_assignment(tmp_path / "a.jsonl", iter(ROWS))
    assert list(read_assignment(tmp_path / "a.jsonl", num_clusters=3)) == ROWS


def test_lines_are_upstreams(tmp_path):
    write_assignment(tmp_path / "a.jsonl", ROWS)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"sp_id": "train/00000/a|b.jsonl|1", "cluster": 0}


@pytest.mark.parametrize(
    "name, path",
    [
        ("train/00000/a.jsonl", "train/00000/a.jsonl"),
        ("train/00000/a.jsonl.gz", "train/00000/a.jsonl.gz.jsonl"),
        ("valid/0/a.parquet", "valid/0/a.parquet.jsonl"),
    ],
)
def test_files_mirror_the_corpus_and_end_in_jsonl(tmp_path, name, path):
    assert assignment_file(tmp_path, name) == tmp_path / path


def test_rows_that_fail_on_the_way_leave_the_old_file(tmp_path):
    def failing():
        yield ROWS[1]
        raise RuntimeError

    write_assignment(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(RuntimeError):
        write_assignment(tmp_path / "a.jsonl", failing())
    assert list(read_assignment(tmp_path / "a.jsonl", num_clusters=3)) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_upstreams_escaped_slashes_are_understood(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"sp_id":"train\\/00000\\/a.jsonl|0","cluster":1}\n')
    assert list(read_assignment(tmp_path / "a.jsonl", num_clusters=2)) == [("train/00000/a.jsonl|0", 1)]


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
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"sp_id": "a|0", "cluster": 0}}\n{line}\n')
    with pytest.raises(ArtifactError, match=message) as caught:
        list(read_assignment(path, num_clusters=3))
    assert str(caught.value).startswith(f"{path}:2 ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.jsonl cannot be read"):
        list(read_assignment(tmp_path / "none.jsonl", num_clusters=3))


def test_documents_meet_their_rows_and_rows_of_others_are_passed_over(tmp_path):
    wanted = documents(ROWS[0][0], ROWS[2][0])
    assert list(with_clusters(wanted, ROWS, tmp_path)) == [(wanted[0], 2), (wanted[1], 1)]


@pytest.mark.parametrize(
    "rows, held", [(ROWS, r"its last row is '.*\|5'"), ([], "it has no row that is left")]
)
def test_a_document_without_a_row_is_named(tmp_path, rows, held):
    missing = documents("train/00000/a|b.jsonl|3")
    with pytest.raises(ArtifactError, match=rf"no cluster for the document '.*\|3' \({held}\)"):
        list(with_clusters(missing, rows, tmp_path))
