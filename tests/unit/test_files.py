import numpy as np
import pytest

from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import (
    atomic_folder,
    load_arrays,
    read_ahead,
    read_json,
    save_arrays,
    sha256,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_reading_ahead_changes_nothing_and_needs_no_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/weights").write_bytes(b"123")
    read_ahead(tmp_path)
    read_ahead(tmp_path / "nothing")
    assert (tmp_path / "sub/weights").read_bytes() == b"123"


def test_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "a", "one")
    write_atomic(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert names(tmp_path) == ["a"]


def test_folder_appears_only_when_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "made") as part:
        (part / "file").write_text("content")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made/file").read_text() == "content"
    assert names(tmp_path) == ["made"]


def test_folder_that_fails_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "made") as part:
        (part / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "made") as part:
        (part / "file").write_text("new")
        raise RuntimeError
    assert (tmp_path / "made/file").read_text() == "old"
    assert names(tmp_path) == ["made"]


def test_half_written_folder_of_a_killed_process_is_thrown_away(tmp_path):
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part/leftover").touch()
    with atomic_folder(tmp_path / "made"):
        pass
    assert names(tmp_path / "made") == []


def test_fortran_ordered_arrays_come_back_as_they_were(tmp_path):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    save_arrays(tmp_path / "a.safetensors", {"x": array})
    assert np.array_equal(load_arrays(tmp_path / "a.safetensors")["x"], array)


def test_damaged_arrays_are_refused_by_name(tmp_path):
    save_arrays(tmp_path / "a.safetensors", {"x": np.arange(3)})
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"a\.safetensors is damaged"):
        load_arrays(tmp_path / "a.safetensors")


def test_json_keeps_every_script(tmp_path):
    write_json(tmp_path / "a.json", {"ja": "人権", "ur": "حق"})
    assert "人権" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"ja": "人権", "ur": "حق"}


def test_missing_and_broken_json_say_which_file(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_folder_in_the_place_of_json_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=rf"{tmp_path} cannot be read \(Is a directory\)"):
        read_json(tmp_path)


@pytest.mark.parametrize("parent", ["file", "/proc"])
def test_folder_that_cannot_be_made_is_named(tmp_path, parent):
    (tmp_path / "file").touch()
    place = tmp_path / parent / "deep"  # joining an absolute path leaves that path
    for path in (place, place / "deeper"):
        with (
            pytest.raises(ArtifactError, match="cannot be made or written to") as caught,
            atomic_folder(path),
        ):
            pass
        assert str(place.parent) in str(caught.value)
        with pytest.raises(ArtifactError, match="cannot be made or written to"):
            write_atomic(path / "a", "one")
