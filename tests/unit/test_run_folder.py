"""What a run folder accepts, and what no command deletes."""

import dataclasses
import json

import pytest

from xelm_nemo import artifacts, device
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.errors import ArtifactError, ConfigError, RunFolderError
from xelm_nemo.stages.claim import claim
from xelm_nemo.stages.export import export_source
from xelm_nemo.stages.jobs import dense_job, expert_job, finished_models, round_jobs, seed_job
from xelm_nemo.stages.run import Run, settled
from xelm_nemo.stages.train import TRAIN


@pytest.fixture
def run(tmp_path):
    return Run(settled(compose(["+experiment=udhr", f"output={tmp_path / 'run'}"])))


def make_inputs(run):
    """What jobs are made from, as empty artifacts, and a report with a language for each cluster."""
    for folder, kind in [(run.tokens, "tokens"), (run.seed_weights, "model"), (run.clusters, "clusters")]:
        with artifacts.build(folder, Recipe(kind, {})):
            pass
    rows = [{"cluster": k, "documents": 1, "languages": {f"l{k}": 1}} for k in range(4)]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))


def finish(job):
    with artifacts.build(job.model_folder, job.recipe()):
        pass


def test_folder_with_files_of_others_is_refused_and_keeps_them(run):
    (run.folder / "corpus").mkdir(parents=True)
    (run.folder / "corpus/precious.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds files but no config\.yaml"):
        claim(run)
    assert (run.folder / "corpus/precious.txt").read_text() == "mine"


def test_claimed_folder_records_what_its_bits_depend_on(run):
    run.folder.mkdir()
    claim(run)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["packages"]["torch"] and record["python"] and record["cpu_cores"] == device.cores()
    claim(run)


def test_no_artifact_is_made_over_files_that_are_none(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/precious.txt").write_text("mine")
    with (
        pytest.raises(ArtifactError, match="not this program's"),
        artifacts.build(tmp_path / "a", Recipe("x", {})),
    ):
        pass
    assert (tmp_path / "a/precious.txt").read_text() == "mine"


@pytest.mark.parametrize("output", ["experts", "experts/expert0", "experts/expert0/model/hf", "."])
def test_export_does_not_replace_its_source(tmp_path, output):
    (tmp_path / "experts/expert0/model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="overlap; give another output"):
        export_source(ExportConfig(str(tmp_path / "experts/expert0"), str(tmp_path / output)))


def test_number_format_stays_as_the_run_began(run, tmp_path):
    other = "fp32" if device.has_cuda() else "bf16"
    began = dataclasses.replace(run.config, precision=type(run.config.precision)(other))
    run.folder.mkdir()
    claim(Run(began))
    again = settled(compose(["+experiment=udhr", f"output={tmp_path / 'run'}"]))
    assert again.precision.params_dtype == other
    claim(Run(again))


def test_expert_of_an_earlier_corpus_is_not_taken_for_finished(run):
    make_inputs(run)
    for job in round_jobs(run):
        finish(job)
    assert list(finished_models(run)) == ["expert0", "expert1", "expert2", "expert3", "dense"]
    with artifacts.build(run.tokens, Recipe("tokens", {"another": "corpus"})):
        pass
    finish(expert_job(run, 2))
    with pytest.raises(ArtifactError, match="no up-to-date expert0, expert1, expert3, dense"):
        finished_models(run)


def test_expert_set_lists_what_is_finished_and_is_written_even_after_a_kill(run):
    make_inputs(run)
    finish(expert_job(run, 1))
    TRAIN.finish(run)
    experts = json.loads((run.experts / "set.json").read_text())["experts"]
    assert [(expert["name"], expert["model"], expert["languages"]) for expert in experts] == [
        ("expert1", "expert1/model", ["l1"])
    ]


def test_split_may_be_a_path(run):
    config = dataclasses.replace(run.config.corpus, path="c", valid_split="valid/c4")
    run = Run(dataclasses.replace(run.config, corpus=config))
    assert run.split("valid").as_posix() == "c/valid/c4"
    assert run.split_name("valid") == "valid/c4"


def test_dense_and_experts_have_equal_tokens_and_the_same_start(run):
    experts, dense = [expert_job(run, k) for k in range(4)], dense_job(run)
    assert dense.train_iters * dense.tokens_per_iteration == sum(
        expert.train_iters * expert.tokens_per_iteration for expert in experts
    )
    assert {job.init for job in [*experts, dense]} == {str(run.seed_weights)}
    assert sorted(sum((expert.clusters for expert in experts), [])) == dense.clusters  # noqa: RUF017
    assert seed_job(run).clusters == dense.clusters


def test_folder_in_which_a_killed_run_made_nothing_takes_another_configuration(run):
    other = Run(dataclasses.replace(run.config, name="other"))
    run.folder.mkdir()
    claim(run)
    run.seed_model.mkdir()
    claim(other)
    (run.seed_model / "weights").touch()
    with pytest.raises(RunFolderError, match="belongs to another configuration: name is 'other' there"):
        claim(run)
