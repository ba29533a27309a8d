"""A sparse model made of the seed, and one made of the experts, through the commands."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT, SMALL, refuse, run, run_well
from tests.helpers.weights import read_weights
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.model_folder import copy_model
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.log import METRICS, read_metrics
from xelm_nemo.model.config import SparseConfig

TASKS = ["tasks=[xnli]", "evaluation.task_data=sample"]
SPARSE = [*SMALL, "upcycle.enabled=true", "upcycle.num_moe_experts=4", "upcycle.train_iters=4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with experts, a dense baseline and a sparse one, evaluated and exported."""
    folder = tmp_path_factory.mktemp("run")
    run_well("train", *SPARSE, f"output={folder}")
    return folder


@pytest.fixture(scope="module")
def mixed(trained, tmp_path_factory):
    """The experts as one sparse model."""
    output = tmp_path_factory.mktemp("mixed") / "btx"
    run_well("export", f"source={trained / 'experts/round0'}", "format=upcycled", f"output={output}")
    return output


def test_upcycled_model_trains_as_long_as_the_experts_and_logs_its_gates(trained):
    facts = load_facts(trained / "experts/round0/upcycled/model")
    dense = load_facts(trained / "experts/round0/dense/model")
    assert isinstance(facts.shape, SparseConfig) and facts.shape.num_moe_experts == 4
    assert facts.consumed_tokens == dense.consumed_tokens
    lines = read_metrics(trained / "experts/round0/upcycled" / METRICS)
    assert all(line["moe_aux_loss"] > 0 for line in lines if "loss" in line)
    models = ("seed_model/upcycled", "experts/round0/upcycled/model")
    before, after = (read_weights(trained / name) for name in models)
    assert before.keys() == after.keys()
    gate = "module.decoder.layers.1.mlp.router.weight"
    assert not (before[gate] == after[gate]).all()


def test_evaluation_has_the_upcycled_model_beside_the_others(trained):
    result = json.loads((trained / "evaluation/result.json").read_text())
    kinds = {model["name"]: model["kind"] for model in result["models"]}
    assert kinds["dense"] == "dense" and kinds["upcycled"] == "other"
    assert "| upcycled |" in (trained / "evaluation/report.md").read_text()


def test_status_shows_the_upcycled_model(trained):
    shown = json.loads(run_well("status", f"output={trained}", "json=true"))
    assert [(row["model"], row["state"]) for row in shown] == [
        (name, "finished") for name in ("seed_model", "dense", "upcycled", "expert0", "expert1")
    ]


def test_same_command_again_makes_nothing(trained):
    code, _, error = run("train", *SPARSE, f"output={trained}")
    assert code == 0 and "train: up to date" in error and "started" not in error


def test_a_set_with_a_sparse_baseline_is_exported_without_it(trained, tmp_path):
    names = {"dense", "expert0", "expert1"}
    assert {path.name for path in (trained / "export").iterdir() if path.name != "ensemble"} == names
    code, _, error = run("export", f"source={trained / 'experts/round0'}", f"output={tmp_path / 'out'}")
    assert code == 0 and "upcycled is left out: format=hf has no model with 4 moe_experts" in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_experts_made_one_model_can_be_trained_on(trained, mixed, tmp_path):
    assert load_facts(mixed).shape.num_moe_experts == 2
    on = [*SMALL, "clustering=random", "clustering.num_clusters=1", "dense.enabled=false"]
    seed = ["seed_model.train_iters=0", "seed_model.source=model", f"seed_model.path={mixed}"]
    code, _, error = run("train", *on, *seed, "finish_with=[export]", f"output={tmp_path}")
    assert code == 0 and "export: nothing, for other libraries have no such sparse models" in error
    facts = load_facts(tmp_path / "experts/round0/expert0/model")
    assert isinstance(facts.shape, SparseConfig) and facts.iteration == 4
    assert facts.consumed_tokens == load_facts(mixed).consumed_tokens + 4 * 8 * 32


def test_sparse_experts_are_not_scored_by_tasks_which_need_an_export(trained, mixed, tmp_path, capsys):
    on = [*SMALL, "clustering=random", "clustering.num_clusters=1", "dense.enabled=false", *TASKS]
    seed = ["seed_model.train_iters=0", "seed_model.source=model", f"seed_model.path={mixed}"]
    said = refuse(capsys, *on, *seed, "finish_with=[]", f"output={tmp_path / 'run'}")
    assert "models with moe_experts are not exported; leave it out" in said


def test_a_sparse_seed_model_is_not_upcycled_again(mixed, tmp_path, capsys):
    seed = ["seed_model.train_iters=0", "seed_model.source=model", f"seed_model.path={mixed}"]
    said = refuse(capsys, *SPARSE, *seed, f"output={tmp_path}")
    assert "the seed model has 2 moe_experts already" in said


def test_layers_that_do_not_alternate_as_asked_are_refused(trained, tmp_path):
    asked = [f"source={trained / 'experts/round0'}", "format=upcycled", f"output={tmp_path / 'btx'}"]
    code, _, error = run("export", *asked, "moe_layer_freq=3")
    expected = "error: moe_layer_freq=3 does not divide the experts' 2 layers; use one of [1, 2]."
    assert code == 2 and error.splitlines()[-1] == expected


def test_ranks_that_divide_the_other_models_score_a_sparse_one_whole(trained):
    found = json.loads((trained / "evaluation/result.json").read_text())["models"]
    for made in ("evaluation", "log_probs"):
        shutil.rmtree(trained / made)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    divided = ["parallel=tp2_sp", "parallel.expert_model_parallel_size=2"]
    words = [*torchrun, "-m", "xelm_nemo.evaluate", *SPARSE, *divided, f"output={trained}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    again = json.loads((trained / "evaluation/result.json").read_text())["models"]
    for model, before in zip(again, found, strict=True):
        assert model["name"] == before["name"]
        assert model["overall"]["perplexity"] == pytest.approx(before["overall"]["perplexity"], rel=1e-5)


def test_a_further_model_of_other_words_is_refused(trained, mixed, tmp_path, capsys):
    train_tokenizer(["completely different words stand in here"] * 9, TokenizerConfig(), tmp_path / "words")
    copy_model(mixed, tmp_path / "btx", Recipe("model", {}), tokenizer=str(tmp_path / "words"))
    further = f"+evaluation.models.btx={tmp_path / 'btx'}"
    said = refuse(capsys, *SPARSE, f"output={trained}", further, verb="evaluate")
    assert f"btx' has other words than the run: its tokenizer is {tmp_path / 'words'}" in said


def test_evaluation_puts_models_made_of_the_experts_into_the_same_table(trained, mixed, tmp_path):
    source, average = trained / "experts/round0", tmp_path / "average"
    run_well("export", f"source={source}", "format=averaged", f"output={average}")
    further = [f"+evaluation.models.btx={mixed}", f"+evaluation.models.averaged={average}"]
    run_well("evaluate", *SPARSE, f"output={trained}", *further)
    result = json.loads((trained / "evaluation/result.json").read_text())
    single = ["upcycled", "btx", "averaged"]
    assert [model["name"] for model in result["models"] if model["kind"] == "other"] == single
    assert result["training_tokens"]["btx"] == result["training_tokens"]["dense"]
    flops = {name: cost["flops_per_token"] for name, cost in result["costs"].items()}
    assert flops["averaged"] == flops["dense"] < flops["btx"] < flops["upcycled"] < flops["ensemble"]


def test_names_of_baselines_are_kept_for_them_where_there_are_none(trained, mixed, capsys):
    further = f"+evaluation.models.upcycled={mixed}"
    said = refuse(capsys, *SMALL, f"output={trained}", further, verb="evaluate")
    assert "evaluation.models.upcycled has the name of a model of the run" in said


@pytest.mark.parametrize(
    "model, said",
    [
        ("dense=nowhere", "evaluation.models.dense has the name of a model of the run"),
        ("btx=nowhere", "evaluation.models.btx='nowhere': nowhere"),
    ],
)
def test_further_models_that_cannot_be_evaluated_are_refused(trained, capsys, model, said):
    line = refuse(capsys, *SPARSE, f"output={trained}", f"+evaluation.models.{model}", verb="evaluate")
    assert said in line
