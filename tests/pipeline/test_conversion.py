"""`branch` and `export` without an experiment: weights in, weights out, and nothing else is needed."""

import json
import shutil

import pytest
import torch

from tests.helpers.metaseq_files import write_consolidated
from tests.helpers.random_opt import write_opt_tokenizer
from tests.helpers.variants import random_variant
from tests.helpers.weights import assert_same_tensors, read_weights
from xelm_nemo import artifacts, command
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.stages import pipeline
from xelm_nemo.stages.export import export_source

TEXTS = ["All human beings are born free and equal in dignity and rights."]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A Hugging Face folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("original")
    random_variant("opt_pre_norm").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_opt_tokenizer(TEXTS, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def branched(original, words, tmp_path_factory):
    """The run folder of `branch`."""
    folder = tmp_path_factory.mktemp("branched") / "run"
    code = branch(original, folder, f"tokenizer.path={words}")
    assert code == 0
    return folder


def branch(source, output, *more):
    arguments = ["seed_model.source=hf", f"seed_model.path={source}", f"output={output}", *more]
    return command.run(lambda: pipeline.main("branch", arguments))


def export(*arguments):
    return command.run(lambda: export_source(compose(list(map(str, arguments)), ExportConfig, "export")))


def lines_about_tokenizers(capsys):
    """What the screen said of them."""
    return [line for line in capsys.readouterr().err.splitlines() if "=DIR" in line]


def error_of(capsys, code):
    assert code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_branch_needs_nothing_but_the_seed_model(branched):
    visible = sorted(path.name for path in branched.iterdir() if not path.name.startswith("."))
    assert visible == ["config.yaml", "run.json", "seed_model"]
    assert (branched / "seed_model/model/weights/.metadata").is_file()


@pytest.mark.parametrize("place", ["seed_model", "seed_model/model"])
def test_seed_model_is_exported_as_it_came_with_the_tokenizer_that_it_was_given(
    original, branched, tmp_path, place
):
    assert export(f"source={branched / place}", f"output={tmp_path / 'hf'}") == 0
    assert (tmp_path / "hf/model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert (tmp_path / "hf/tokenizer.json").is_file()


def test_model_without_a_tokenizer_converts_with_a_word_on_it(original, tmp_path, capsys):
    assert branch(original, tmp_path / "run") == 0
    (line,) = lines_about_tokenizers(capsys)
    assert f"{original} has no tokenizer; tokenizer.path=DIR gives it one" in line
    assert export(f"source={tmp_path / 'run/seed_model'}", f"output={tmp_path / 'hf'}") == 0
    (line,) = lines_about_tokenizers(capsys)
    assert "goes without a tokenizer, tokenizer=DIR adds one" in line
    config, generation = (
        json.loads((tmp_path / "hf" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert generation[name] == config[name]
    assert not list((tmp_path / "hf").glob("tokenizer*"))


def test_tokenizer_is_found_from_any_working_directory(original, words, tmp_path, monkeypatch):
    monkeypatch.chdir(words.parent)
    assert branch(original, tmp_path / "run", f"tokenizer.path={words.name}") == 0
    made = (tmp_path / "run/seed_model/model/manifest.json").stat().st_mtime_ns
    assert branch(original, tmp_path / "run", f"tokenizer.path={words.name}") == 0  # and is up to date
    assert (tmp_path / "run/seed_model/model/manifest.json").stat().st_mtime_ns == made
    monkeypatch.chdir(tmp_path)
    assert export(f"source={tmp_path / 'run/seed_model'}", f"output={tmp_path / 'hf'}") == 0
    assert (tmp_path / "hf/tokenizer.json").is_file()


def test_tokenizer_that_lies_about_is_none_of_the_models(original, words, tmp_path):
    shutil.copytree(words, tmp_path / "tokenizer")
    assert branch(original, tmp_path / "runs/run") == 0
    shutil.copytree(words, tmp_path / "runs/run/tokenizer")  # none that a run made
    assert export(f"source={tmp_path / 'runs/run/seed_model'}", f"output={tmp_path / 'hf'}") == 0
    assert not (tmp_path / "hf/tokenizer.json").exists()


def test_tokenizer_of_the_run_comes_first(branched, tmp_path):
    run = shutil.copytree(branched, tmp_path / "run")
    with artifacts.build(run / "tokenizer", Recipe("tokenizer", {})) as part:
        write_opt_tokenizer(["Another text."], part)
    assert export(f"source={run / 'seed_model'}", f"output={tmp_path / 'hf'}") == 0
    found, expected = (
        json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path / "hf", run / "tokenizer")
    )
    assert found["model"]["vocab"] == expected["model"]["vocab"]


def test_tokenizer_that_is_asked_for_has_to_be_there(branched, tmp_path, capsys):
    code = export(f"source={branched / 'seed_model'}", f"output={tmp_path / 'hf'}", f"tokenizer={tmp_path}")
    assert "holds no tokenizer" in error_of(capsys, code)
    assert not (tmp_path / "hf").exists()


def test_tokenizer_of_another_model_is_refused_by_its_special_tokens(original, branched, tmp_path, capsys):
    other = tmp_path / "words"
    write_opt_tokenizer(["All human beings"], other, special=("<unk>", "<s>", "<pad>", "</s>"))
    line = error_of(capsys, branch(original, tmp_path / "run", f"tokenizer.path={other}"))
    assert "special tokens have ids" in line and "'</s>': 3" in line and "set tokenizer.path=DIR" in line
    assert not (tmp_path / "run/seed_model").exists()
    arguments = [f"source={branched / 'seed_model'}", f"output={tmp_path / 'hf'}", f"tokenizer={other}"]
    assert "special tokens have ids" in error_of(capsys, export(*arguments))
    assert not (tmp_path / "hf").exists()


def test_metaseq_comes_in_and_goes_out(words, tmp_path):
    path = write_consolidated(random_variant("opt_pre_norm"), tmp_path / "in.pt")
    arguments = [f"seed_model.path={path}", f"tokenizer.path={words}", f"output={tmp_path / 'run'}"]
    assert command.run(lambda: pipeline.main("branch", ["seed_model.source=metaseq", *arguments])) == 0
    assert not export(f"source={tmp_path / 'run/seed_model'}", f"output={tmp_path / 'out'}", "format=metaseq")
    assert_same_tensors(
        *(torch.load(p, weights_only=True)["model"] for p in (tmp_path / "out/consolidated.pt", path))
    )


def test_number_format_is_cast_when_asked(branched, words, tmp_path):
    arguments = [f"source={branched / 'seed_model'}", f"output={tmp_path / 'hf'}", f"tokenizer={words}"]
    assert export(*arguments, "dtype=bf16") == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert branch(tmp_path / "hf", tmp_path / "run") == 0
    halved, whole = (read_weights(folder / "seed_model/model") for folder in (tmp_path / "run", branched))
    assert all(torch.equal(halved[name], whole[name].bfloat16()) for name in whole)


def test_half_precision_comes_in_as_float32_and_leaves_as_it_came(tmp_path):
    model = random_variant("opt_pre_norm").half()
    with torch.no_grad():  # the smallest numbers of all and both zeros among them
        model.model.decoder.embed_tokens.weight[5, :3] = torch.tensor([6e-8, -0.0, -65504.0])
    model.save_pretrained(tmp_path / "half")
    assert branch(tmp_path / "half", tmp_path / "run") == 0
    weights = read_weights(tmp_path / "run/seed_model/model").values()
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert export(f"source={tmp_path / 'run/seed_model'}", f"output={tmp_path / 'hf'}") == 0
    found, given = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("hf", "half"))
    assert found == given


def test_card_of_an_expert_says_what_its_set_knows_of_it(branched, tmp_path):
    shutil.copytree(branched / "seed_model", tmp_path / "round0/expert1")
    expert = {"name": "expert1", "model": "expert1/model", "cluster": 1, "documents": 1234}
    (tmp_path / "round0/set.json").write_text(json.dumps({"experts": [expert | {"languages": ["sw", "ur"]}]}))
    assert export(f"source={tmp_path / 'round0/expert1'}", f"output={tmp_path / 'hf'}") == 0
    card = (tmp_path / "hf/README.md").read_text()
    for said in (
        "language:\n- sw\n- ur\n",
        "| languages | sw, ur |",
        "| cluster | 1 |",
        "| documents | 1234 |",
    ):
        assert said in card


def test_export_replaces_no_model(tmp_path, capsys):
    random_variant("opt_pre_norm").save_pretrained(tmp_path / "hf")
    for name in ("one", "two"):
        assert branch(tmp_path / "hf", tmp_path / name) == 0
    kept = tmp_path / "two/seed_model/model"
    code = export(f"source={tmp_path / 'one/seed_model'}", f"output={kept}")
    assert f"{kept} holds a model, which would be lost" in error_of(capsys, code)
    assert (kept / "weights").is_dir()


def test_tokenizer_with_more_tokens_than_the_model_has_weights_is_refused(words, tmp_path, capsys):
    model = random_variant("opt_pre_norm")
    model.resize_token_embeddings(len(load_tokenizer(words)) - 1)
    model.save_pretrained(tmp_path / "hf")
    code = branch(tmp_path / "hf", tmp_path / "run", f"tokenizer.path={words}")
    assert "tokens and the model has weights for" in error_of(capsys, code)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argument, said",
    [
        ("format=onnx", "format='onnx' is not known; use one of ['hf', 'metaseq'"),
        ("dtype=int8", "dtype='int8' is not known; use one of ['fp32', 'bf16', 'fp16']"),
    ],
)
def test_choice_that_is_not_known_is_named(branched, tmp_path, capsys, argument, said):
    code = export(f"source={branched / 'seed_model'}", f"output={tmp_path / 'out'}", argument)
    assert said in error_of(capsys, code)
    assert not (tmp_path / "out").exists()


def test_weights_that_changed_since_they_were_written_are_refused(branched, tmp_path, capsys):
    model = shutil.copytree(branched / "seed_model/model", tmp_path / "model")
    path = min((model / "weights").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    line = error_of(capsys, export(f"source={model}", f"output={tmp_path / 'out'}"))
    assert f"{path} has changed since it was made" in line
    assert not (tmp_path / "out").exists()
