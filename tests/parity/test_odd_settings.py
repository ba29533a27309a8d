"""Settings that are nothing a model could have: one line names the file, the key and the value."""

import dataclasses
import json
import math
import shutil

import pytest
import yaml

from tests.helpers.nemo_files import write_nemo_checkpoint
from tests.helpers.random_xglm import change_config
from tests.helpers.variants import VARIANTS, random_variant
from xelm_nemo.artifacts import Recipe, build
from xelm_nemo.checkpoint.architectures import read_shape
from xelm_nemo.checkpoint.facts import ModelFacts, load_facts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.errors import ArtifactError, CheckpointError
from xelm_nemo.files import write_json
from xelm_nemo.model.config import ModelConfig

ODD = ["", "2", "two", 0, -1, 1.5, True, [], [2], {}, {"a": 2}, math.nan, math.inf]
ZERO = ("dropout", "attention_dropout", "hidden_dropout", "init_std", "init_method_std", "layernorm_epsilon")
FINE = {"post_layernorm": True, "do_layer_norm_before": True, "layerdrop": 0} | dict.fromkeys(ZERO, 0)
XGLM = ("num_layers", "d_model", "ffn_dim", "attention_heads", "max_position_embeddings", "vocab_size")
OPT = ("num_hidden_layers", "hidden_size", "ffn_dim", "num_attention_heads", "max_position_embeddings")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Hugging Face folder of each architecture."""
    root = tmp_path_factory.mktemp("sound")
    for name, (architecture, _) in VARIANTS.items():
        random_variant(name).save_pretrained(root / architecture)
    return root


@pytest.fixture
def checkpoint(folders, tmp_path):
    """A NeMo checkpoint."""
    import_hf(folders / "opt", tmp_path / "model", Recipe("model", {}))
    return write_nemo_checkpoint(tmp_path / "model", tmp_path / "nemo", vocab_size=300)


def assert_refused(read, folder, file, key, value):
    if value == FINE.get(key, math.nan):
        return
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder / file) in said and f"{key}={value!r}" in said


@pytest.mark.parametrize(
    "architecture, key",
    [
        *(("xglm", key) for key in (*XGLM, "dropout", "init_std", "activation_function", "layerdrop")),
        *(("opt", key) for key in (*OPT, "word_embed_proj_dim", "do_layer_norm_before", "dropout")),
    ],
)
def test_odd_value_in_a_config_is_named(folders, tmp_path, architecture, key):
    config = json.loads((folders / architecture / "config.json").read_text())
    for value in [*ODD, None] if key in (*XGLM, *OPT) else ODD:
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        assert_refused(read_shape, tmp_path, "config.json", key, value)


@pytest.mark.parametrize(
    "key",
    [
        *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings"),
        *("layernorm_epsilon", "init_method_std", "hidden_dropout", "attention_dropout"),
        *("post_layernorm", "word_embed_proj_dim", "vocab_size"),
    ],
)
def test_odd_value_in_a_context_is_named(checkpoint, key):
    path = checkpoint / "context/model.yaml"
    content = yaml.safe_load(path.read_text())
    for value in ODD if key in ("word_embed_proj_dim", "vocab_size") else [*ODD, None]:
        path.write_text(yaml.safe_dump(content | {"config": content["config"] | {key: value}}))
        assert_refused(read_context, checkpoint, "context/model.yaml", key, value)


@pytest.mark.parametrize("name", [{}, {"attr": {}}, {"attr": None}, {"attr": ""}, [], "", 0, 7, True])
def test_odd_name_of_a_tokenizer_is_named(checkpoint, name):
    path = checkpoint / "context/model.yaml"
    content = yaml.safe_load(path.read_text()) | {"tokenizer": {"pretrained_model_name": name}}
    path.write_text(yaml.safe_dump(content))
    assert_refused(read_context, checkpoint, "context/model.yaml", "pretrained_model_name", name)


@pytest.mark.parametrize(
    "text", ["", "3", "[]", "{}", "config: 3", "a: 2024-99-99", "[" * 5000, "\0", "{[]: 1}", "*x"]
)
def test_file_without_settings_is_named(checkpoint, tmp_path, text):
    (checkpoint / "context/model.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=str(checkpoint)):
        read_context(checkpoint)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=f"{tmp_path}/config.json"):
        read_shape(tmp_path)


def test_heads_that_do_not_divide_the_width_are_named(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "xglm/config.json").read_bytes())
    change_config(tmp_path, attention_heads=5)
    with pytest.raises(CheckpointError, match=r"config\.json: attention_heads=5 does not divide d_model="):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda facts: {}, "does not hold shape, vocab_size, dtype, tokenizer"),
        (lambda facts: [], "does not hold shape, vocab_size, dtype, tokenizer"),
        (lambda facts: facts | {"shape": []}, "does not hold the sizes of a model"),
        (lambda facts: facts | {"newer": 1}, "has newer, which this version does not know"),
        (lambda facts: facts | {"shape": {"newer": 1}}, "has newer, which this version does not know"),
    ],
    ids=["empty", "list", "shape", "key", "key_of_shape"],
)
def test_odd_facts_of_a_model_are_named(tmp_path, change, said):
    facts = ModelFacts(ModelConfig(), 300, "fp32", "words")
    with build(tmp_path / "model", Recipe("model", {})) as part:
        write_json(part / "model.json", change(dataclasses.asdict(facts)))
    with pytest.raises(ArtifactError, match=rf"model/model\.json {said}"):
        load_facts(tmp_path / "model")


def test_config_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ArtifactError, match=r"config\.json cannot be read"):
        read_shape(tmp_path)


def test_more_layers_than_any_model_has_are_refused_at_once(folders, tmp_path):
    source = shutil.copytree(folders / "xglm", tmp_path / "hf")
    change_config(source, num_layers=3_000_000)
    with pytest.raises(CheckpointError, match="num_layers=3000000 is more than 10,000, as no model has"):
        read_shape(source)
