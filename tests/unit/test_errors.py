import pytest

from xelm_nemo.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  \nthree"), "three"),
        (OSError(), "OSError"),
    ],
)
def test_somebody_elses_error_is_one_line_or_its_type(error, line):
    assert first_line(error) == line
