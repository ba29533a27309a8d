"""Checkpoints that cannot be converted: one line names file and tensor, and no output folder is left."""

import json
import pickle
import shutil

import pytest
import torch

from tests.helpers.commands import refuse
from tests.helpers.hostile import RunsCode
from tests.helpers.metaseq_files import write_consolidated
from tests.helpers.nemo_files import write_nemo_checkpoint
from tests.helpers.random_opt import write_opt_tokenizer
from tests.helpers.random_xglm import change_config, change_weights
from tests.helpers.variants import random_variant
from tests.helpers.weights import replace_weight
from xelm_nemo import command
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.stages import pipeline
from xelm_nemo.stages.export import export_source

FC1 = "model.layers.1.fc1.weight"
SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One model as each kind of checkpoint, and a tokenizer."""
    root = tmp_path_factory.mktemp("sound")
    model = random_variant("xglm_relu_8x")
    model.save_pretrained(root / "hf")
    write_consolidated(model, root / "metaseq.pt")
    import_hf(root / "hf", root / "model", Recipe("model", {}))
    write_nemo_checkpoint(root / "model", root / "nemo", vocab_size=300)
    write_opt_tokenizer(["All human beings are born free."], root / "words")
    return root


@pytest.fixture
def bad(sound, tmp_path):
    """The same, to damage; `ran` beside it is what hostile ones would write."""
    return shutil.copytree(sound, tmp_path / "bad")


def words(root, source, output):
    """The arguments of a bare conversion."""
    path = root / ("metaseq.pt" if source == "metaseq" else source)
    tokenizer = f"tokenizer.path={root / 'words'}"
    return [f"seed_model.source={source}", f"seed_model.path={path}", tokenizer, f"output={output}"]


def truncated(root):
    path = root / "hf" / SAFETENSORS
    path.write_bytes(path.read_bytes()[:20_000])


def without_a_shard(root):
    (root / "hf" / SAFETENSORS).rename(root / "hf/model-1.safetensors")
    write_index(root, "model-1.safetensors", "model-2.safetensors")


def outside(root):
    (root / "hf" / SAFETENSORS).rename(root / "elsewhere.safetensors")
    write_index(root, "../elsewhere.safetensors")


def write_index(root, *files):
    index = {"weight_map": {f"tensor{number}": file for number, file in enumerate(files)}}
    (root / "hf" / INDEX).write_text(json.dumps(index))


def of_another_shape(root):
    change_weights(root / "hf", lambda tensors: tensors | {FC1: torch.ones(256, 40)})


def of_another_depth(root):
    change_config(root / "hf", num_layers=3)


def of_another_kind(root):
    change_config(root / "hf", model_type="gpt2")


def with_an_odd_config(root):
    (root / "hf/config.json").write_text("[]")


def with_an_odd_context(root):
    path = root / "nemo/context/model.yaml"
    path.write_text(path.read_text().replace("num_attention_heads: 2", "num_attention_heads: 0"))


def with_nan(root):
    change_weights(root / "hf", lambda tensors: tensors | {FC1: torch.full((256, 32), torch.nan)})


def metaseq_with_nan(root):
    tensor = torch.full((256, 32), torch.nan)
    change = {FC1.replace("model.", "decoder.", 1): tensor}
    write_consolidated(
        random_variant("xglm_relu_8x"), root / "metaseq.pt", change=lambda tensors: tensors | change
    )


def nemo_with_nan(root):
    replace_weight(
        root / "nemo/weights",
        "decoder.final_layernorm.bias",
        lambda bias: bias.masked_fill(bias > 0, torch.nan),
    )


def hostile_pt(root):
    torch.save({"model": {FC1: RunsCode(root / "ran")}}, root / "metaseq.pt")


def hostile_bin(root):
    (root / "hf" / SAFETENSORS).unlink()
    torch.save({FC1: RunsCode(root / "ran")}, root / "hf/pytorch_model.bin")


def hostile_index(root):
    (root / "nemo/weights/.metadata").write_bytes(pickle.dumps([RunsCode(root / "ran")]))


@pytest.mark.parametrize(
    "damage, source, said",
    [
        (truncated, "hf", [SAFETENSORS, "cannot be read as weights"]),
        (without_a_shard, "hf", ["model-2.safetensors is missing"]),
        (outside, "hf", [INDEX, "'../elsewhere.safetensors'", "outside its folder"]),
        (of_another_shape, "hf", [f"{FC1} has shape [256, 40], expected [256, 32] (in {SAFETENSORS})"]),
        (of_another_depth, "hf", ["missing: model.layers.2.fc1.bias"]),
        (of_another_kind, "hf", ["config.json: model_type='gpt2'"]),
        (with_an_odd_config, "hf", ["bad/hf' has no config.json that can be read"]),
        (with_an_odd_context, "nemo", ["model.yaml: num_attention_heads=0"]),
        (with_nan, "hf", [SAFETENSORS, FC1, "not finite"]),
        (metaseq_with_nan, "metaseq", ["metaseq.pt", FC1, "not finite"]),
        (nemo_with_nan, "nemo", ["bad/nemo: model.layer_norm.bias", "not finite"]),
        (hostile_bin, "hf", ["pytorch_model.bin names io.open", "nothing of it was run"]),
        (hostile_pt, "metaseq", ["metaseq.pt names io.open"]),
        (hostile_index, "nemo", [".metadata names io.open", "nothing of it was run"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_checkpoint_leaves_no_output_and_a_mended_command_works(
    sound, bad, tmp_path, capsys, damage, source, said
):
    damage(bad)
    output = tmp_path / "new/run"
    line = refuse(capsys, *words(bad, source, output), verb="branch")
    for part in said:
        assert part in line
    assert not (bad / "ran").exists()
    assert not output.parent.exists()
    pipeline.main("branch", words(sound, source, output))
    assert (output / "seed_model/model/model.json").is_file()


def test_folder_that_was_there_stays_and_is_empty(sound, bad, tmp_path, capsys):
    with_nan(bad)
    (tmp_path / "mine").mkdir()
    refuse(capsys, *words(bad, "hf", tmp_path / "mine"), verb="branch")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [".lock"]
    pipeline.main("branch", words(sound, "hf", tmp_path / "mine"))


def test_failure_beside_a_finished_model_keeps_it_and_its_configuration(sound, bad, tmp_path, capsys):
    pipeline.main("branch", words(sound, "hf", tmp_path / "run"))
    before = (tmp_path / "run/config.yaml").read_bytes()
    line = refuse(capsys, *words(bad, "hf", tmp_path / "run"), verb="branch")
    assert f"{tmp_path / 'run'} belongs to another configuration: " in line and "seed_model.path" in line
    assert (tmp_path / "run/config.yaml").read_bytes() == before


def refuse_export(capsys, source, output):
    words = [f"source={source}", f"output={output}"]
    assert command.run(lambda: export_source(compose(words, ExportConfig, "export"))) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_export_of_a_set_with_a_damaged_model_writes_none_of_it(sound, tmp_path, capsys):
    for name in ("expert0", "expert1"):
        shutil.copytree(sound / "model", tmp_path / "set" / name / "model")
    (tmp_path / "set/expert1/model/model.json").write_text("{}")
    line = refuse_export(capsys, tmp_path / "set", tmp_path / "out")
    assert line.startswith("error: ") and "expert1/model/model.json" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["metaseq.pt/out", "/proc/out"])
def test_export_to_a_place_that_cannot_be_is_one_line(sound, capsys, place):
    line = refuse_export(capsys, sound / "model", sound / place)
    assert line.startswith("error: ") and "cannot be made or written to" in line


def test_sizes_are_ignored_aloud_only_where_somebody_set_them(sound, tmp_path, capsys):
    pipeline.main("branch", words(sound, "hf", tmp_path / "bare"))
    assert "is not of the seed model" not in capsys.readouterr().err
    pipeline.main("branch", [*words(sound, "hf", tmp_path / "set"), "model.num_layers=5"])
    assert "branch: model.num_layers=5 is not of the seed model" in capsys.readouterr().err
