"""Bad input gets one clear line and exit code 2, and nothing is written."""

import json
import os

import pytest

from tests.helpers.commands import SMALL, run
from xelm_nemo import command, lock
from xelm_nemo.stages import pipeline


def refuse(capsys, *arguments, verb="train"):
    """Run a verb in this process and return its one line."""
    code = command.run(lambda: pipeline.main(verb, list(map(str, arguments))))
    error = capsys.readouterr().err.splitlines()
    assert code == 2, error
    lines = [line for line in error if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


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
    ],
)
def test_setting_that_cannot_work(capsys, tmp_path, arguments, said):
    line = refuse(capsys, *arguments, f"output={tmp_path / 'run'}")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_configuration_are_said_at_once(capsys, tmp_path):
    line = refuse(
        capsys, "model.num_layers=3", "parallel.pipeline_model_parallel_size=2", "model.activation=tanh"
    )
    assert "pipeline_model_parallel_size=2 does not divide model.num_layers=3" in line
    assert "model.activation='tanh'" in line


@pytest.mark.parametrize(
    "bad, said",
    [
        (b"{not json", "a.jsonl:2"),
        (b'{"text": "caf\xe9"}', "a.jsonl:2"),
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
