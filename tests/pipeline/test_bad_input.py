"""Bad input gets one clear line and exit code 2, and nothing is written."""

import json
import os
import shutil

import pytest

from tests.helpers.commands import SMALL, refuse, run
from xelm_nemo import lock
from xelm_nemo.config.compose import compose
from xelm_nemo.stages import pipeline
from xelm_nemo.stages.plan import check_places
from xelm_nemo.stages.run import Run


def corpus(folder, **lines):
    """A corpus whose splits hold the given raw lines, one good document by default."""
    for split in ("train", "valid", "test"):
        content = lines.get(split, [json.dumps({"text": "all human beings", "lang": "en"}).encode()])
        shard = folder / split / "00000"
        shard.mkdir(parents=True)
        (shard / "a.jsonl").write_bytes(b"\n".join(content) + b"\n")
    return folder


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["optim.learning_rate=1"], "optim.learning_rate is not a setting; did you mean"),
        (["+experiment=xelm17"], "use one of"),
        (["model.num_layers=two"], "model.num_layers=two"),
        (
            ["parallel.tensor_model_parallel_size=3"],
            "does not divide model.num_attention_heads=4; use one of [1, 2, 4]",
        ),
        (["training.global_batch_size=9"], "use a multiple of"),
        (["training.seq_length=4096"], "longer than model.max_position_embeddings=128"),
        (["clustering.method=astrology"], "'tfidf', 'typology', 'random'"),
        (["training.train_clusters=[1,99]"], "[99] are not among clusters 0..7"),
        (["parallel.sequence_parallel=true"], "tensor_model_parallel_size of 2 or more"),
        (["finish_with=[party]"], "['party'] are not stages after training"),
        (["seed_model.source=hf", "seed_model.path=/no/such"], "seed_model.path='/no/such' is no folder"),
        (["corpus.path=/no/such"], "set corpus.path=DIR"),
        (["training.train_iters=0"], "training.train_iters=0 must be at least 1"),
        (["training.train_clusters=[0]", "finish_with=[evaluate]"], "evaluate need"),
        (["tokenizer.path=./none"], "tokenizer.path='./none' is no folder"),
    ],
)
def test_setting_that_cannot_work(capsys, tmp_path, arguments, said):
    line = refuse(capsys, *arguments, f"output={tmp_path / 'run'}")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_configuration_are_said_at_once(capsys, tmp_path):
    line = refuse(
        capsys, "model.num_layers=3", "parallel.pipeline_model_parallel_size=4", "model.activation=tanh"
    )
    assert "pipeline_model_parallel_size=4 is more than model.num_layers=3" in line
    assert "model.activation='tanh'" in line


@pytest.mark.parametrize(
    "bad, said",
    [
        (b"{not json", "a.jsonl:2"),
        (b'{"text": "na\xefve"}', "a.jsonl:2"),
        (b'{"lang": "en"}', "a.jsonl:2"),
        (b'{"text": "  "}', "a.jsonl:2"),
    ],
)
def test_bad_line_of_a_corpus_is_named(capsys, tmp_path, bad, said):
    good = json.dumps({"text": "all human beings are born free", "lang": "en"}).encode()
    path = corpus(tmp_path / "corpus", train=[good, bad])
    line = refuse(capsys, f"corpus.path={path}", f"output={tmp_path / 'run'}", verb="cluster")
    assert said in line
    assert not (tmp_path / "run/clusterer").exists()


def test_more_clusters_than_documents(capsys, tmp_path):
    path = corpus(tmp_path / "corpus")
    line = refuse(capsys, f"corpus.path={path}", f"output={tmp_path / 'run'}", verb="cluster")
    assert "clustering.num_clusters=8 cannot divide 1 documents" in line


def test_live_run_folder_says_who_holds_it(capsys, tmp_path):
    with lock.hold(tmp_path / "run"):
        code, _, error = run("train", *SMALL, f"output={tmp_path / 'run'}")
    assert code == 2
    assert f"is held by process {os.getpid()} on" in error and "since" in error


def test_experiment_without_its_data_names_what_to_set(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refuse(capsys, "+experiment=xelm16")
    assert "corpus.path='data/mc4_16' has no data/mc4_16/train and no data/mc4_16/valid" in line
    assert "seed_model.path='facebook/xglm-1.7B' is no folder here" in line and "hub id" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_output_that_cannot_be_a_folder(capsys, tmp_path, place):
    (tmp_path / "file").touch()
    line = refuse(capsys, f"output={tmp_path / place}")
    assert f"{tmp_path / place} cannot be made or written to" in line and "set output=DIR" in line


def test_evaluation_asks_for_its_split_before_anything_starts(capsys, tmp_path):
    path, run_folder = corpus(tmp_path / "corpus"), tmp_path / "run"
    arguments = [f"corpus.path={path}", "corpus.test_split=exam", f"output={run_folder}"]
    said = f"has no {path / 'exam'}: set corpus.path=DIR to a folder of {{train,valid,exam}}"
    assert said in refuse(capsys, *arguments, verb="evaluate")
    assert said in refuse(capsys, *arguments, "finish_with=[evaluate]")
    assert not run_folder.exists()


def test_stages_before_evaluation_need_no_test_split(capsys, tmp_path):
    path = corpus(tmp_path / "corpus")
    arguments = [f"corpus.path={path}", "corpus.test_split=exam", f"output={tmp_path / 'run'}"]
    assert "cannot divide 1 documents" in refuse(capsys, *arguments, verb="cluster")


def test_split_without_a_shard_or_a_document(capsys, tmp_path):
    path = corpus(tmp_path / "corpus", valid=[b""])
    (path / "valid/00000/a.jsonl").write_bytes(b"")
    shutil.rmtree(path / "train/00000")
    line = refuse(capsys, f"corpus.path={path}", f"output={tmp_path / 'run'}")
    assert f"{path / 'train'} holds no *.jsonl" in line
    assert f"{path / 'valid'} holds no document" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_expert_that_nobody_trains_is_asked_for_first(capsys, tmp_path, verb):
    arguments = ["clustering.num_clusters=4", f"output={tmp_path / 'run'}"]
    line = refuse(capsys, *arguments, "training.train_clusters=[0,2]", verb=verb)
    assert f"leaves out experts [1, 3], which are not finished and which {verb} need" in line
    assert not (tmp_path / "run").exists()


def test_experts_that_are_finished_need_no_training(tmp_path):
    config = compose(["clustering.num_clusters=2", "training.train_clusters=[0]", f"output={tmp_path}"])
    (tmp_path / "experts/round0/expert1/model").mkdir(parents=True)
    check_places(Run(config), pipeline.stages_of("evaluate", config))


def test_path_of_a_seed_model_matters_only_where_it_is_read():
    config = compose(["seed_model=random", "seed_model.path=/no/such"])
    check_places(Run(config), pipeline.stages_of("train", config))
    config = compose(["seed_model=hf", "seed_model.path=/no/such"])
    check_places(Run(config), pipeline.stages_of("cluster", config))


@pytest.mark.parametrize("config", [None, "{", "[]"])
def test_seed_folder_without_a_model_or_a_tokenizer(capsys, tmp_path, config):
    seed = tmp_path / "seed"
    seed.mkdir()
    if config:
        (seed / "config.json").write_text(config)
    line = refuse(capsys, "seed_model=hf", f"seed_model.path={seed}", f"output={tmp_path / 'run'}")
    assert f"seed_model.path='{seed}' has no config.json that can be read" in line
    assert f"seed_model.path='{seed}' has no tokenizer: set tokenizer.path=DIR" in line


def test_tokenizer_folder_without_a_tokenizer(capsys, tmp_path):
    line = refuse(capsys, f"tokenizer.path={tmp_path}", f"output={tmp_path / 'run'}")
    assert f"tokenizer.path='{tmp_path}' has no tokenizer" in line
