import os

import pytest

from xelm_nemo.artifacts import Recipe, build, check, is_current, verify
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import read_json, write_json


def make(folder, recipe, content="content"):
    with build(folder, recipe) as part:
        (part / "file").write_text(content)


def test_artifact_is_current_until_its_settings_change(tmp_path):
    recipe = Recipe("thing", {"size": 1})
    assert not is_current(tmp_path / "a", recipe)
    make(tmp_path / "a", recipe)
    assert is_current(tmp_path / "a", recipe)
    assert not is_current(tmp_path / "a", Recipe("thing", {"size": 2}))
    assert not is_current(tmp_path / "a", Recipe("other", {"size": 1}))


def test_input_file_that_changes_makes_the_artifact_stale(tmp_path):
    (tmp_path / "input").write_text("one")
    recipe = Recipe("thing", {}, {"input": tmp_path / "input"})
    make(tmp_path / "a", recipe)
    assert is_current(tmp_path / "a", recipe)
    (tmp_path / "input").write_text("three")
    assert not is_current(tmp_path / "a", recipe)


def test_touched_input_rebuilds_its_artifact_but_nothing_after_it(tmp_path):
    (tmp_path / "input").write_text("one")
    first = Recipe("first", {}, {"input": tmp_path / "input"})
    second = Recipe("second", {}, {"first": tmp_path / "a"})
    make(tmp_path / "a", first)
    make(tmp_path / "b", second)
    os.utime(tmp_path / "input", ns=(1, 1))
    assert not is_current(tmp_path / "a", first)
    make(tmp_path / "a", first)
    assert is_current(tmp_path / "b", second)
    make(tmp_path / "a", first, content="another")
    assert not is_current(tmp_path / "b", second)


def test_missing_input_says_what_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match="input is missing; run the command that makes it"):
        make(tmp_path / "a", Recipe("thing", {}, {"input": tmp_path / "input"}))
    assert not (tmp_path / "a").exists()


def test_failed_build_leaves_no_artifact(tmp_path):
    with pytest.raises(RuntimeError), build(tmp_path / "a", Recipe("thing", {})):
        raise RuntimeError
    with pytest.raises(ArtifactError, match="no finished thing"):
        check(tmp_path / "a", "thing")


def test_artifact_of_another_kind_or_version_is_refused(tmp_path):
    make(tmp_path / "a", Recipe("thing", {}))
    with pytest.raises(ArtifactError, match="holds a thing, not a model"):
        check(tmp_path / "a", "model")
    manifest = read_json(tmp_path / "a/manifest.json")
    write_json(tmp_path / "a/manifest.json", manifest | {"format_version": 99})
    with pytest.raises(ArtifactError, match="format version 99"):
        check(tmp_path / "a", "thing")


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', '{"recipe": {}}'])
def test_damaged_manifest_is_named(tmp_path, content):
    make(tmp_path / "a", Recipe("thing", {}))
    (tmp_path / "a/manifest.json").write_text(content)
    for action in (lambda: check(tmp_path / "a", "thing"), lambda: verify(tmp_path / "a")):
        with pytest.raises(ArtifactError, match=r"a/manifest\.json is not as this program writes it"):
            action()
    assert not is_current(tmp_path / "a", Recipe("thing", {}))


def test_one_changed_byte_is_found(tmp_path):
    make(tmp_path / "a", Recipe("thing", {}))
    verify(tmp_path / "a")
    (tmp_path / "a/file").write_text("Content")
    with pytest.raises(ArtifactError, match="file has changed since it was made"):
        verify(tmp_path / "a")


@pytest.mark.parametrize("content", ['{"name": "an extension of a browser"}', "[]", "not JSON"])
def test_input_folder_with_a_foreign_manifest_is_an_ordinary_folder(tmp_path, content):
    source, recipe = tmp_path / "source", Recipe("thing", {}, {"source": tmp_path / "source"})
    source.mkdir()
    (source / "manifest.json").write_text(content)
    make(tmp_path / "a", recipe)
    assert is_current(tmp_path / "a", recipe)
    (source / "another").touch()
    assert not is_current(tmp_path / "a", recipe)
