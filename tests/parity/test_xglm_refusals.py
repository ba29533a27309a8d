"""Hugging Face folders that cannot be imported: one line says why, and nothing is left behind."""

import json
import shutil

import pytest
import torch

from tests.helpers.random_xglm import RELU, change_config, change_weights, random_xglm
from tests.helpers.runs_code import RunsCode
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.xglm import write_config
from xelm_nemo.errors import ArtifactError, CheckpointError
from xelm_nemo.model.config import ModelConfig

FC1 = "model.layers.1.fc1.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    random_xglm(**RELU).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    """A folder to damage."""
    return shutil.copytree(good, tmp_path / "original")


def assert_refused(source, tmp_path, *parts, error=CheckpointError):
    with pytest.raises(error) as caught:
        import_hf(source, tmp_path / "out/model", Recipe("model", {}))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    left = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    assert left == []


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def spoil(tensors, name, value):
    tensors[name][-1, -1] = value
    return tensors


@pytest.mark.parametrize(
    "change, parts",
    [
        (lambda tensors: without(tensors, FC1), ["original", f"missing: {FC1}"]),
        (lambda tensors: tensors | {"model.extra": torch.ones(1)}, ["original", "unknown: model.extra"]),
        (
            lambda tensors: tensors | {FC1: torch.ones(256, 40)},
            [f"{FC1} has shape [256, 40], expected [256, 32]"],
        ),
        (lambda tensors: tensors | {FC1: torch.ones(256)}, [f"{FC1} has shape [256], expected [256, 32]"]),
        (lambda tensors: spoil(tensors, FC1, torch.nan), ["model.safetensors", FC1, "not finite"]),
        (lambda tensors: spoil(tensors, FC1, -torch.inf), ["model.safetensors", FC1, "not finite"]),
        (
            lambda tensors: tensors | {FC1: tensors[FC1].to(torch.int8)},
            ["model.safetensors", FC1, "torch.int8"],
        ),
        (
            lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
            ["lm_head.weight differs from model.embed_tokens.weight"],
        ),
    ],
    ids=["missing", "extra", "shape", "dimensions", "nan", "inf", "dtype", "untied"],
)
def test_wrong_tensor_is_named(folder, tmp_path, change, parts):
    change_weights(folder, change)
    assert_refused(folder, tmp_path, *parts)


def test_checkpoint_of_another_depth_lists_the_tensors(folder, tmp_path):
    change_config(folder, num_layers=1)
    assert_refused(folder, tmp_path, "unknown: model.layers.1.fc1.bias", "and 8 more")


def test_checkpoint_of_another_width_names_both_shapes(folder, tmp_path):
    change_config(folder, d_model=64)
    assert_refused(folder, tmp_path, "model.embed_tokens.weight has shape [300, 32], expected [300, 64]")


@pytest.mark.parametrize(
    "setting, part",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is none of ['opt', 'xglm']"),
        ({"scale_embedding": False}, "scale_embedding=False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        (
            {"activation_function": "gelu_new"},
            "activation_function='gelu_new' is not one of ['gelu', 'relu']",
        ),
        ({"activation_dropout": 0.1}, "activation_dropout=0.1"),
        ({"layerdrop": 0.1}, "layerdrop=0.1"),
        ({"pad_token_id": 5}, "pad_token_id=5"),
        ({"d_model": None}, "d_model=None"),
        ({"num_layers": "two"}, "num_layers='two'"),
        ({"dropout": 1.5}, "dropout=1.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_that_the_model_does_not_compute_with_is_named(folder, tmp_path, setting, part):
    change_config(folder, **setting)
    assert_refused(folder, tmp_path, "config.json", part)


def test_all_settings_that_do_not_fit_are_named_together(folder, tmp_path):
    change_config(folder, layerdrop=0.1, vocab_size=0)
    assert_refused(folder, tmp_path, "layerdrop=0.1", "vocab_size=0")


@pytest.mark.parametrize("kept", [0, 5, 200, 20_000], ids=lambda kept: f"{kept}_bytes")
def test_truncated_safetensors_names_the_file(folder, tmp_path, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(folder, tmp_path, str(path), "cannot be read")


def test_truncated_torch_file_names_the_file(folder, tmp_path):
    path = folder / "pytorch_model.bin"
    torch.save({FC1: torch.ones(1000)}, path)
    (folder / "model.safetensors").unlink()
    path.write_bytes(path.read_bytes()[:1000])
    assert_refused(folder, tmp_path, str(path), "cannot be read")


def test_torch_file_that_would_run_code_does_not(folder, tmp_path):
    torch.save({FC1: RunsCode(tmp_path / "ran")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, tmp_path, "pytorch_model.bin", "cannot be read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "place", ["../elsewhere.safetensors", "deeper/model.safetensors", "/{tmp}/absolute.safetensors"]
)
def test_index_that_points_out_of_its_folder_is_refused(folder, tmp_path, place):
    place = place.replace("/{tmp}", str(tmp_path))
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / place)
    write_index(folder, place)
    assert_refused(folder, tmp_path, "model.safetensors.index.json", repr(place), "outside its folder")


def test_shard_that_is_missing_is_named(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write_index(folder, "model-1.safetensors", "model-2.safetensors")
    assert_refused(folder, tmp_path, str(folder / "model-2.safetensors"), "is missing")


def test_tensor_in_two_shards_is_named(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    write_index(folder, "model-1.safetensors", "model-2.safetensors")
    assert_refused(folder, tmp_path, "model-2.safetensors", "is also in model-1.safetensors")


def write_index(folder, *files):
    index = {"weight_map": {f"tensor{number}": file for number, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_folder_without_weights_is_refused(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert_refused(folder, tmp_path, str(folder), "holds no weights")


def test_folder_without_config_is_refused(folder, tmp_path):
    (folder / "config.json").unlink()
    assert_refused(folder, tmp_path, "config.json is missing", error=ArtifactError)


@pytest.mark.parametrize("source", ["somebody/no-such-model", "no/such/folder/here"])
def test_source_that_is_neither_folder_nor_hub_id_is_named(tmp_path, source):
    assert_refused(source, tmp_path, f"seed_model.path={source!r}", "give a folder", error=ArtifactError)


def test_model_that_hugging_face_cannot_express_is_refused():
    facts = ModelFacts(ModelConfig(layernorm_epsilon=1e-6), vocab_size=300, dtype="fp32", tokenizer="none")
    with pytest.raises(CheckpointError, match=r"model\.layernorm_epsilon=1e-06 cannot be exported"):
        write_config(facts)
