import json
import socket
import subprocess
import sys
import time

import pytest

from xelm_nemo import lock
from xelm_nemo.command import FENCED
from xelm_nemo.errors import RunFolderError

HOLDER = """
import pathlib, sys, time
from xelm_nemo import lock
from xelm_nemo.command import FENCED
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_holder_is_told_who_holds(tmp_path, holder):
    assert lock.is_held(tmp_path)
    with (
        pytest.raises(RunFolderError, match=rf"held by process {holder.pid} on .* since .*kill {holder.pid}"),
        lock.hold(tmp_path, patience_seconds=0),
    ):
        pass


def test_killed_holder_lets_go(tmp_path, holder):
    holder.kill()
    with lock.hold(tmp_path):
        pass
    assert not lock.is_held(tmp_path)


def test_folder_that_nobody_locked_is_free(tmp_path):
    assert not lock.is_held(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/run", "full"])
def test_place_that_cannot_be_a_folder_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "full" / lock.LOCK).mkdir(parents=True)
    said = rf"{tmp_path / place} cannot be made or written to .*set output=DIR"
    with pytest.raises(RunFolderError, match=said), lock.hold(tmp_path / place):
        pass


def test_place_without_the_right_to_write_is_named(tmp_path, monkeypatch):
    def refuse(path, *_, **__):  # rights bind everyone but root, who may run the tests
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(RunFolderError, match="Permission denied"), lock.hold(tmp_path / "run"):
        pass


def test_error_inside_the_block_is_not_taken_for_the_folders(tmp_path):
    with pytest.raises(FileNotFoundError), lock.hold(tmp_path):
        (tmp_path / "missing").read_text()


def take(folder, holder):
    """What a process of another node does where locks mean nothing to it: it writes its own name."""
    (folder / lock.LOCK).write_text(json.dumps(holder))


def test_holder_ends_when_another_node_takes_the_folder(tmp_path, holder):
    take(tmp_path, {"token": "theirs", "host": "elsewhere", "pid": 1, "since": "now"})
    assert holder.wait(timeout=lock.LOOK_SECONDS + 5) == FENCED


NAMER = """
import pathlib, sys
from xelm_nemo import lock
lock.LOOK_SECONDS = 3600
with lock.hold(pathlib.Path(sys.argv[1])) as claim:
    claim.insist()
    print("held", flush=True)
    sys.stdin.readline()
    claim.insist()
    print("named", flush=True)
"""


def test_nothing_takes_its_name_in_a_folder_that_another_took(tmp_path):
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", NAMER, tmp_path], text=True, **streams)
    assert process.stdout.readline() == "held\n"
    take(tmp_path, {"token": "theirs", "host": "elsewhere", "pid": 7, "since": "now", "job": "41"})
    output, error = process.communicate("go on\n")
    assert (process.returncode, output) == (FENCED, "")
    assert "held by process 7 on elsewhere in SLURM job 41 since now" in error
    assert json.loads((tmp_path / lock.LOCK).read_text())["token"] == "theirs"


def test_torn_lock_file_accuses_nobody(tmp_path):
    with lock.hold(tmp_path) as claim:
        (tmp_path / lock.LOCK).write_text('{"token": "the')
        assert claim.is_good()


@pytest.mark.parametrize(
    "earlier, waits",
    [
        ({}, 0),
        ({"token": "old", "host": socket.gethostname()}, 0),
        ({"token": "old", "host": "elsewhere"}, 1),
    ],
)
def test_new_holder_waits_for_one_of_another_node_that_did_not_let_go(tmp_path, monkeypatch, earlier, waits):
    slept = []
    take(tmp_path, earlier)
    monkeypatch.setattr(lock.time, "sleep", slept.append)
    with lock.hold(tmp_path):
        assert slept == [lock.LEASE_SECONDS] * waits
    assert (tmp_path / lock.LOCK).read_text() == "{}"


def test_folder_that_holding_made_goes_again_with_what_it_lies_in_unless_something_comes_into_it(tmp_path):
    with lock.hold(tmp_path / "a/b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with lock.hold(tmp_path / "a/b"):
        (tmp_path / "a/b/file").touch()
    assert (tmp_path / "a/b/file").is_file()


def test_waiting_for_a_folder_that_goes_ends_with_a_lock_that_others_see(tmp_path):
    folder = tmp_path / "run"
    with lock.hold(folder):
        waiting = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True)
        time.sleep(1)  # it has the file open, and waits
    try:
        assert waiting.stdout.readline() == "held\n"
        assert lock.is_held(folder)
    finally:
        waiting.kill()
        waiting.wait()
