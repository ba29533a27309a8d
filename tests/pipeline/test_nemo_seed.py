"""`branch` from a NeMo checkpoint, and `export` to one: what needs no NeMo."""

import importlib.util
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.helpers.commands import SMALL, refuse
from tests.helpers.nemo_files import change_context, write_nemo_checkpoint
from tests.helpers.random_opt import LIKE_350M, random_opt, write_opt_tokenizer
from tests.helpers.weights import read_weights, replace_weight
from xelm_nemo import command, export
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.layers import EMBEDDING
from xelm_nemo.config.compose import compose
from xelm_nemo.stages import pipeline
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.shard import tokenizer_source


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with a tokenizer beside it."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("model")
    random_opt(**LIKE_350M).save_pretrained(root / "hf")
    write_opt_tokenizer(["All human beings are born free."], root / "tokenizer")
    import_hf(root / "hf", root / "model", Recipe("model", {}))
    return root / "model"


@pytest.fixture
def checkpoint(model, tmp_path):
    words = model.parent / "tokenizer"
    return write_nemo_checkpoint(model, tmp_path / "checkpoint", tokenizer=words, vocab_size=300)


def arguments(checkpoint, folder, *more):
    source = ["seed_model.source=nemo", f"seed_model.path={checkpoint}", "seed_model.train_iters=0"]
    return [*SMALL, *source, f"output={folder}", *more]


def refused(capsys, checkpoint, folder, *more):
    """What `branch` says of a checkpoint that it leaves alone."""
    line = refuse(capsys, *arguments(checkpoint, folder, *more), verb="branch")
    assert not (folder / "seed_model/model").exists()
    return line


def here(verb, *words):
    """The exit code of a command run in this process."""
    return command.run(lambda: pipeline.main(verb, list(words)))


def test_checkpoint_becomes_the_seed_model_and_brings_its_tokenizer(model, checkpoint, tmp_path):
    assert here("branch", *arguments(checkpoint, tmp_path / "run")) == 0
    found, expected = read_weights(tmp_path / "run/seed_model/model"), read_weights(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    facts = json.loads((tmp_path / "run/seed_model/model/model.json").read_text())
    before = json.loads((model / "model.json").read_text())
    assert facts["shape"] == before["shape"] and facts["vocab_size"] == 300
    assert facts["tokenizer"] == str(checkpoint / "context/tokenizer")
    run = Run(compose(arguments(checkpoint, tmp_path / "run")))
    assert tokenizer_source(run) == facts["tokenizer"]  # what documents are tokenised with


@pytest.fixture(scope="module")
def num_ids(model):
    """How many tokens the tokenizer has, which are fewer than the model."""
    content = json.loads((model.parent / "tokenizer/tokenizer.json").read_text())
    return len(content["model"]["vocab"])


def open_checkpoint(model, folder, *, vocab_size, rows=None, fill=0.0):
    """A checkpoint whose context leaves the vocabulary open, with as many rows of embeddings."""
    random_opt(**LIKE_350M, vocab_size=vocab_size).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "model", Recipe("model", {}))
    if rows is not None:
        replace_weight(
            folder / "model/weights",
            EMBEDDING,
            lambda table: F.pad(table[:vocab_size], (0, 0, 0, rows - vocab_size), value=fill),
        )
    return write_nemo_checkpoint(
        folder / "model", folder / "checkpoint", tokenizer=model.parent / "tokenizer"
    )


@pytest.mark.parametrize("rows", [None, 2048])
def test_vocabulary_that_the_context_leaves_open_is_the_tokenizers(model, num_ids, tmp_path, capsys, rows):
    checkpoint = open_checkpoint(model, tmp_path, vocab_size=num_ids, rows=rows)
    assert here("branch", *arguments(checkpoint, tmp_path / "run")) == 0
    facts = json.loads((tmp_path / "run/seed_model/model/model.json").read_text())
    assert facts["vocab_size"] == num_ids
    assert "taken for padding" not in capsys.readouterr().err


def test_rows_that_may_be_padding_are_left_out_with_a_word_on_it(model, num_ids, tmp_path, capsys):
    checkpoint = open_checkpoint(model, tmp_path, vocab_size=num_ids, rows=384, fill=0.1)
    assert here("branch", *arguments(checkpoint, tmp_path / "run")) == 0
    said = capsys.readouterr().err
    assert f"has 384 rows; the last {384 - num_ids} are taken for padding and left out" in said


@pytest.mark.parametrize("rows, fill, used", [(None, 0.0, 300), (2048, 0.1, 2048)])
def test_rows_that_are_no_padding_are_not_left_out(model, num_ids, tmp_path, capsys, rows, fill, used):
    checkpoint = open_checkpoint(model, tmp_path, vocab_size=300, rows=rows, fill=fill)
    said = refused(capsys, checkpoint, tmp_path / "run")
    assert f"context/tokenizer has {num_ids} tokens, and {EMBEDDING} has {used} rows with weights" in said
    assert "set tokenizer.path=DIR" in said


def test_vocabulary_of_the_context_that_leaves_too_much_out_is_refused(checkpoint, tmp_path, capsys):
    config = yaml.safe_load((checkpoint / "context/model.yaml").read_text())["config"]
    change_context(checkpoint, config=config | {"vocab_size": 100})
    assert f"vocab_size=100, and {EMBEDDING} has 300 rows" in refused(capsys, checkpoint, tmp_path / "run")


@pytest.mark.parametrize("missing", ["context", "weights"])
def test_folder_that_is_no_checkpoint_is_named(checkpoint, tmp_path, capsys, missing):
    shutil.rmtree(checkpoint / missing)
    said = refused(capsys, checkpoint, tmp_path / "run")
    assert f"{checkpoint} is no NeMo checkpoint; give a folder with weights/ and context/model.yaml" in said


def test_model_of_another_architecture_is_named(checkpoint, tmp_path, capsys):
    change_context(checkpoint, _target_="nemo.collections.llm.gpt.model.llama.LlamaModel")
    said = refused(capsys, checkpoint, tmp_path / "run")
    assert "holds a model of class 'nemo.collections.llm.gpt.model.llama.LlamaModel'; give an" in said
    assert "XGLMModel or OPTModel" in said


def test_yaml_that_would_run_something_is_refused_and_runs_nothing(checkpoint, tmp_path, capsys):
    bomb = f"!!python/object/apply:os.mkdir [{tmp_path / 'ran'}]"
    (checkpoint / "context/model.yaml").write_text(f"_target_: {bomb}\n")
    assert "model.yaml cannot be read (could not determine a constructor" in refused(
        capsys, checkpoint, tmp_path / "run"
    )
    assert not (tmp_path / "ran").exists()


def test_settings_that_are_missing_or_unknown_are_named(checkpoint, tmp_path, capsys):
    config = yaml.safe_load((checkpoint / "context/model.yaml").read_text())["config"]
    change_context(checkpoint, config={key: config[key] for key in config if key != "num_layers"})
    assert "model.yaml has no num_layers" in refused(capsys, checkpoint, tmp_path / "run")
    silu = {"_target_": "torch.nn.functional.silu", "_call_": False}
    change_context(checkpoint, config=config | {"activation_func": silu})
    assert "model.yaml: activation_func='silu' is not one of" in refused(capsys, checkpoint, tmp_path / "run")


def test_weights_that_the_context_does_not_describe_are_listed(checkpoint, tmp_path, capsys):
    config = yaml.safe_load((checkpoint / "context/model.yaml").read_text())["config"]
    change_context(checkpoint, config=config | {"ffn_hidden_size": 64})
    said = refused(capsys, checkpoint, tmp_path / "run", f"tokenizer.path={checkpoint}/context/tokenizer")
    assert "decoder.layers.0.mlp.linear_fc1.weight has shape [128, 32], expected [64, 32]" in said


def test_tokenizer_that_the_checkpoint_lacks_has_to_be_given_for_tokens(model, tmp_path, capsys):
    bare = write_nemo_checkpoint(model, tmp_path / "bare", vocab_size=300)
    assert here("shard", *arguments(bare, tmp_path / "run")) == 2
    assert f"seed_model.path='{bare}' has no tokenizer: set tokenizer.path=DIR" in capsys.readouterr().err


def test_export_to_nemo_says_what_to_install(model, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "nemo" else found(name))
    words = [f"source={model}", f"output={tmp_path / 'out'}", "format=nemo"]
    monkeypatch.setattr("sys.argv", ["export", *words])
    assert command.run(export.main) == 2
    assert "format=nemo needs NeMo, which is not installed; run `pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
