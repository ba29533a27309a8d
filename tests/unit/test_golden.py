import pytest

from tests.helpers.golden import GoldenFiles


def test_missing_golden_file_fails_and_is_not_written(tmp_path):
    with pytest.raises(AssertionError, match=r"report\.md is missing; write it with `make golden`"):
        GoldenFiles(tmp_path).check("report.md", "text")
    assert list(tmp_path.iterdir()) == []


def test_difference_fails_and_leaves_the_file_alone(tmp_path):
    (tmp_path / "report.md").write_text("old")
    with pytest.raises(AssertionError, match="differs"):
        GoldenFiles(tmp_path).check("report.md", "new")
    assert (tmp_path / "report.md").read_text() == "old"


def test_rewriting_makes_the_comparison_pass(tmp_path):
    GoldenFiles(tmp_path, rewrite=True).check("deep/report.md", "new")
    GoldenFiles(tmp_path).check("deep/report.md", "new")
