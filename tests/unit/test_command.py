import os

import pytest

from xelm_nemo import command
from xelm_nemo.errors import ConfigError


def fail(error):
    raise error


def test_success_is_silent(capsys):
    assert command.run(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_user_error_is_one_line_and_exit_code_2(capsys):
    assert command.run(lambda: fail(ConfigError("a=1 cannot work; use 2."))) == 2
    assert capsys.readouterr().err == "error: a=1 cannot work; use 2.\n"


def test_name_from_a_file_neither_breaks_the_line_nor_steers_the_terminal(capsys):
    assert command.run(lambda: fail(ConfigError("unknown: a\nb\x1b[2Jc, été 中"))) == 2
    assert capsys.readouterr().err == "error: unknown: a\\nb\\x1b[2Jc, été 中\n"


@pytest.mark.parametrize("given, expected", [(None, "0"), ("1", "1")])
def test_float32_is_exact_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    if given is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", given)
    seen = []
    command.run(lambda: seen.append(os.environ["NVIDIA_TF32_OVERRIDE"]))
    assert seen == [expected]


def test_interrupt_says_how_to_go_on(capsys):
    assert command.run(lambda: fail(KeyboardInterrupt())) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_bug_keeps_its_traceback():
    try:
        command.run(lambda: fail(ZeroDivisionError()))
    except ZeroDivisionError:
        return
    raise AssertionError("a bug was swallowed")
