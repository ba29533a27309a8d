"""What becomes of a finished run: evaluated by many ranks, in other ways, and asked for text."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import ROOT, SMALL, run, run_well
from tests.helpers.megatron_cpu import free_ports
from xelm_nemo.config.compose import from_yaml
from xelm_nemo.corpus.tokenizer import encode_document
from xelm_nemo.evaluation.plan import select_documents
from xelm_nemo.files import load_arrays, save_arrays
from xelm_nemo.generation.opened import open_model
from xelm_nemo.stages.generate import find_set
from xelm_nemo.stages.run import CONFIG, Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "small"
    run_well("train", *SMALL, f"output={folder}")
    return folder


def results(folder):
    return json.loads((folder / "evaluation/result.json").read_text())


def nats(folder):
    return {model["name"]: model["overall"]["nats"] for model in results(folder)["models"]}


@pytest.mark.parametrize("layout", ["single", "tp2_sp"])
def test_two_ranks_find_what_one_does(finished, tmp_path, layout):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "evaluation")
    shutil.rmtree(folder / "log_probs")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
        *(f"--master-port={free_ports(1)[0]}", "-m", "xelm_nemo.evaluate"),
        *(*SMALL, f"output={folder}", f"parallel={layout}"),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert nats(folder) == pytest.approx(nats(finished), rel=1e-5)


def test_ranks_do_not_start_where_experts_are_missing(tmp_path):
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "xelm_nemo.evaluate", *SMALL, f"output={tmp_path / 'none'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2
    assert "has no up-to-date experts; run `python -m xelm_nemo.train` first" in done.stderr


def test_subsets_and_temperatures_are_measured_in_one_pass(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    wanted = ["evaluation.subsets=[test,valid]", "evaluation.temperatures=[1.0]", "evaluation.stride=8"]
    run_well("evaluate", *SMALL, f"output={folder}", *wanted, "evaluation.batch_tokens=100")
    found = results(folder)
    assert [found["dataset"], *(each["dataset"] for each in found["subsets"])] == ["udhr/test", "udhr/valid"]
    assert "ensemble, T=1" in {model["name"] for model in found["subsets"][0]["models"]}
    assert found["num_truncated"] == 0
    report = (folder / "evaluation/report.md").read_text()
    assert "# Evaluation on udhr/test" in report and "# Evaluation on udhr/valid" in report
    assert (folder / "evaluation/valid/perplexity_by_language.png").is_file()


def test_tasks_are_run_on_the_experts_and_reported(finished, tmp_path):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'xelm_nemo[eval]'")
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    wanted = ["tasks=[xnli_de,ag_news]", "evaluation.task_data=sample", "evaluation.num_fewshot=1"]
    screen = run_well("evaluate", *SMALL, f"output={folder}", *wanted)
    assert "xnli_de" in screen and "demonstrations: 1, seeds 42" in " ".join(screen.split())
    found = results(folder)
    assert {"dataset", "result_ppl", "result_prior"} <= found.keys()
    scores = found["tasks"]["scores"]
    assert {(score["task"], score["model"]) for score in scores} == {
        (task, model) for task in ("xnli_de", "ag_news") for model in ("dense", "ensemble", "ensemble top-1")
    }
    assert all(0 <= score["value"] <= 1 for score in scores)
    report = (folder / "evaluation/report.md").read_text()
    assert "# Tasks" in report and "rule upstream, temperature 0.1" in report
    assert nats(folder) == nats(finished)


def test_the_experts_that_there_are_can_be_evaluated(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "experts/round0/expert1/model")
    only_first = [*SMALL, f"output={folder}", "training.train_clusters=[0]"]
    code, _, error = run("evaluate", *only_first)
    assert code == 2 and "leaves out experts [1]" in error
    screen = run_well("evaluate", *only_first, "evaluation.allow_missing=true")
    assert "Without expert1: not trained." in " ".join(screen.split())
    assert results(folder)["missing_experts"] == ["expert1"]


def test_a_clusterer_that_is_not_the_run_s_own_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "clusterer/centroids.safetensors"
    arrays = {name: -array[::-1] for name, array in load_arrays(path).items()}
    save_arrays(path, arrays)
    code, _, error = run("evaluate", *SMALL, f"output={folder}", "evaluation.temperatures=[2.0]")
    assert code == 2 and re.search(r"clusterer/centroids.* has changed since it was made; delete", error)
    assert nats(folder) == nats(finished)


@pytest.mark.parametrize("name, top_k", [("ensemble", None), ("ensemble top-1", 1)])
def test_the_exported_set_gives_documents_what_evaluation_measured(finished, name, top_k):
    """Megatron's experts on one side, Hugging Face's on the other, each with its own way to the weights."""
    opened = open_model(find_set(finished), experts_per_token=top_k)
    run = Run(dataclasses.replace(from_yaml(finished / CONFIG), output=str(finished)))
    total = 0.0
    for document in select_documents(list(run.subset("test")), run.config.evaluation.max_docs):
        ids = torch.tensor(encode_document(opened.tokenizer, document.text)[: run.config.seq_length + 1])
        log_p_TV = opened.model(ids[None, :-1]).logits[0]
        total -= log_p_TV.gather(-1, ids[1:, None]).double().sum().item()
    assert total == pytest.approx(nats(finished)[name], rel=1e-6)


def test_a_run_continues_prompts(finished):
    arguments = [finished, "human rights", "droits", "--max-new-tokens=4", "--temperature=1", "--top-k=50"]
    screen = run_well("generate", *arguments)
    assert run_well("generate", *arguments) == screen
    assert screen.startswith("human rights") and "\ndroits" in screen
    assert {"expert0", "expert1", "dense", "ensemble"} <= {
        path.name for path in (finished / "export").iterdir()
    }


def test_a_run_without_exported_experts_says_what_to_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    code, _, error = run("generate", tmp_path / "run", "human")
    assert code == 2 and "lacks expert0, expert1; run `python -m xelm_nemo.export source=" in error
