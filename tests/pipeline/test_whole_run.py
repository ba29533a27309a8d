"""The pipeline from text to exported models, once, at the smallest size, seen from many sides."""

import json

import pytest
import torch

from tests.helpers.commands import SMALL, run, run_well


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "small"
    return folder, run_well("train", *SMALL, f"output={folder}")


def modification_times(folder):
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_report_is_on_screen_and_compares_ensemble_with_dense(finished):
    _, screen = finished
    assert "ensemble" in screen and "against dense" in screen and "equal" in screen


def test_result_has_upstreams_keys_and_every_model(finished):
    folder, _ = finished
    result = json.loads((folder / "evaluation/result.json").read_text())
    assert {"dataset", "result_ppl", "result_prior"} <= result.keys()
    names = {model["name"] for model in result["models"]}
    assert {"expert0", "expert1", "dense", "ensemble", "ensemble top-1", "top-1 by language"} <= names
    assert 1 < result["result_ppl"] < 10_000


def test_plots_are_pictures(finished):
    folder, _ = finished
    plots = sorted((folder / "evaluation").glob("*.png"))
    assert len(plots) == 3
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)


def test_dense_and_experts_saw_equal_tokens(finished):
    folder, _ = finished
    facts = {
        name: json.loads((folder / f"experts/round0/{name}/model/model.json").read_text())
        for name in ("dense", "expert0", "expert1")
    }
    assert facts["dense"]["consumed_tokens"] == sum(facts[f"expert{k}"]["consumed_tokens"] for k in (0, 1))


def test_second_run_makes_nothing_again(finished):
    folder, first_screen = finished
    before = modification_times(folder)
    screen = run_well("train", *SMALL, f"output={folder}")
    after = modification_times(folder)
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"config.yaml"}
    assert screen == first_screen


def test_status_shows_every_model_as_finished(finished):
    folder, _ = finished
    lines = run_well("status", f"output={folder}").splitlines()
    for name in ("seed_model", "dense", "expert0", "expert1"):
        assert any(name in line and "finished" in line and "4/4" in line for line in lines)


def test_exported_folders_load_in_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = finished
    assert {path.name for path in (folder / "export").iterdir()} == {"dense", "expert0", "expert1"}
    model = AutoModelForCausalLM.from_pretrained(folder / "export/expert1")
    tokenizer = AutoTokenizer.from_pretrained(folder / "export/expert1", use_fast=False)
    ids = tokenizer("human rights", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids).logits.shape == (1, ids.shape[1], model.config.vocab_size)


def test_export_of_a_folder_of_models(finished, tmp_path):
    folder, _ = finished
    run_well("export", f"source={folder / 'experts/round0'}", f"output={tmp_path / 'hf'}")
    for name in ("dense", "expert0", "expert1"):
        ours, theirs = folder / "export" / name, tmp_path / "hf" / name
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_other_settings_for_the_same_folder_are_refused_by_name(finished):
    folder, _ = finished
    code, _, error = run("train", *SMALL, f"output={folder}", "optim.lr=0.5")
    assert code == 2
    assert error.count("\n") == 1 and "optim.lr is" in error and "0.5 here" in error and "output=DIR" in error


def test_another_top_k_evaluates_again_and_trains_nothing(finished):
    folder, _ = finished
    before = modification_times(folder / "experts")
    screen = run_well("evaluate", *SMALL, f"output={folder}", "evaluation.top_k=[null,1]")
    assert "top-2" not in screen
    after = modification_times(folder / "experts")
    assert before == after
