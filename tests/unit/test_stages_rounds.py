"""Rounds of a run: what each expert is trained from and on, what is submitted, and what the sets list."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.rounds import TREE, finish, make_inputs, opened
from tests.helpers.submitted import record_batches, submit_all
from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts, write_facts
from xelm_nemo.clustering.typology import XELM_LANGUAGES
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError
from xelm_nemo.launch.slurm import Queued
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages import merging, submit
from xelm_nemo.stages.jobs import (
    all_rounds,
    dense_job,
    expert_job,
    finished_models,
    round_jobs,
    upcycled_job,
)
from xelm_nemo.stages.models import models_table
from xelm_nemo.stages.rounds import ancestors_tokens
from xelm_nemo.stages.rows import models
from xelm_nemo.stages.run import settled
from xelm_nemo.stages.train import TRAIN


@pytest.fixture
def run(tmp_path):
    return opened(tmp_path)


# --- Down the tree ----------------------------------------------------------------------------------


def test_child_begins_from_its_parents_model_and_reads_its_own_clusters(run):
    root, halves, leaves = all_rounds(run)
    assert (root[0].init, root[0].clusters) == (str(run.seed_weights), [0, 1, 2, 3])
    assert {job.init for job in halves} == {str(root[0].model_folder)}
    for leaf in leaves:
        (parent,) = [job for job in halves if str(job.model_folder) == leaf.init]
        assert set(leaf.clusters) < set(parent.clusters)
    assert expert_job(run, 2) == leaves[2]


def test_last_rounds_experts_are_the_set_and_earlier_ones_are_named_by_their_round(run):
    names = [job.name for job in models(run)]
    leaves = ["expert0", "expert1", "expert2", "expert3"]
    assert names == ["round0-expert0", "round1-expert0", "round1-expert1", *leaves]
    assert run.experts == run.folder / "experts/round2"
    assert Path(expert_job(run, 1).folder) == run.folder / "experts/round2/expert1"


def test_a_rounds_experts_share_a_step_and_the_dense_model_sees_the_tokens_of_all_rounds(tmp_path):
    run = opened(tmp_path, "rounds.train_iters=[10,20,40]", "dense.enabled=true")
    tokens = [sum(job.train_iters * job.tokens_per_iteration for job in jobs) for jobs in all_rounds(run)]
    assert tokens == [iters * 32 * run.config.seq_length for iters in (10, 20, 40)]
    dense = dense_job(run)
    assert dense.train_iters * dense.tokens_per_iteration == sum(tokens)


def test_the_upcycled_model_is_made_of_the_seed_model_and_sees_the_tokens_of_all_rounds(tmp_path, capsys):
    words = ["upcycle.enabled=true", "dense.enabled=true", "upcycle.train_iters=35"]
    run = opened(tmp_path, "rounds.train_iters=[10,20,40]", *words)
    dense, upcycled = models(run)[:2]
    assert [job.name for job in round_jobs(run)[:2]] == [dense.name, upcycled.name] == ["dense", "upcycled"]
    assert upcycled.train_iters * upcycled.tokens_per_iteration == 70 * dense.tokens_per_iteration
    assert (upcycled.init, upcycled.clusters) == (str(run.upcycled_init), [0, 1, 2, 3])
    assert Path(upcycled.folder) == run.experts / "upcycled"
    assert ancestors_tokens(run, "upcycled") == 0
    Console(width=80).print(models_table(run))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "upcycled" in line]
    assert "seed_model" in row and "…" not in row


def test_experts_share_the_tokens_of_their_ancestors(run):
    *before, leaves = all_rounds(run)
    spent = sum(job.train_iters * job.tokens_per_iteration for jobs in before for job in jobs)
    assert sum(ancestors_tokens(run, job.name) for job in leaves) == spent
    assert ancestors_tokens(run, "dense") == 0


def test_the_upcycled_model_has_the_sizes_of_its_seed_model_whatever_the_settings_say(tmp_path):
    shape = ModelConfig(num_layers=6, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4)
    with artifacts.build(tmp_path / "model", Recipe("model", {})) as part:
        write_facts(part, ModelFacts(shape, 300, "fp32", "none"))
    seed = ["seed_model.source=model", f"seed_model.path={tmp_path / 'model'}", "model.num_layers=4"]
    run = opened(tmp_path, "upcycle.enabled=true", "upcycle.moe_layer_freq=3", *seed)
    found = upcycled_job(run).shape
    assert found.dense == shape and found.moe_layers == [2, 5]


@pytest.mark.parametrize("name, before", [("upcycled", 1001), ("seed_model", 0)])
def test_tokens_of_a_model_that_is_trained_on_count_once_in_a_set_and_a_seed_models_do_not(
    tmp_path, name, before
):
    facts = ModelFacts(ModelConfig(), 300, "fp32", "none", consumed_tokens=1001, name=name)
    with artifacts.build(tmp_path / "model", Recipe("model", {})) as part:
        write_facts(part, facts)
    source = ["seed_model.source=model", f"seed_model.path={tmp_path / 'model'}"]
    run = opened(tmp_path, "dense.enabled=true", *source)
    leaves = all_rounds(run)[-1]
    assert dense_job(run).tokens_before == sum(job.tokens_before for job in leaves) == before
    assert len({job.tokens_before for job in leaves}) <= 2


def test_models_are_known_when_what_their_seed_was_taken_from_is_gone(tmp_path):
    facts = ModelFacts(ModelConfig(), 300, "fp32", "none", consumed_tokens=1001, name="upcycled")
    run = opened(tmp_path, "seed_model.source=model", f"seed_model.path={tmp_path / 'gone'}")
    with artifacts.build(run.seed_init, Recipe("model", {})) as part:
        write_facts(part, facts)
    assert sum(job.tokens_before for job in all_rounds(run)[-1]) == 1001
    assert run.sized.model == ModelConfig()


def test_finished_model_to_go_on_from_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settled(compose([*TREE, "seed_model.source=model", "seed_model.path=btx"]))
    assert config.seed_model.path == str(tmp_path / "btx")


@pytest.mark.parametrize("seed, seeds", [(7, [7, 8, 9]), (2**32 - 1, [2**32 - 1, 0, 1])])
def test_each_round_has_a_seed_of_its_own_and_the_first_that_of_the_settings(tmp_path, seed, seeds):
    run = opened(tmp_path, f"training.seed={seed}")
    assert [{job.seed for job in jobs} for jobs in all_rounds(run)] == [{each} for each in seeds]
    assert dense_job(run).seed == seed


def test_going_back_is_for_the_set_not_for_its_ancestors(tmp_path):
    run = opened(tmp_path, "checkpoint.resume_at=100")
    assert [[job.resume_at for job in jobs] for jobs in all_rounds(run)] == [[None], [None] * 2, [100] * 4]


def test_chosen_experts_are_trained_along_with_what_they_begin_from(tmp_path):
    run = opened(tmp_path, "training.train_clusters=[3]")
    assert [job.name for job in round_jobs(run)] == ["round0-expert0", "round1-expert0", "expert3"]


def test_finished_parent_is_not_trained_again_and_a_new_one_has_its_children_trained_again(run):
    make_inputs(run)
    jobs = round_jobs(run)
    for job in jobs:
        finish(job)
    assert submit.to_train(jobs) == []
    finish(jobs[1], other="weights")  # round1-expert0, of ja and ko
    assert [job.name for job in submit.to_train(jobs)] == ["expert2", "expert3"]


def test_baselines_are_in_the_last_rounds_set_alone(tmp_path):
    run = opened(tmp_path, "upcycle.enabled=true", "dense.enabled=true")
    make_inputs(run)
    with artifacts.build(run.upcycled_init, Recipe("model", {})):
        pass
    for job in round_jobs(run):
        finish(job)
    TRAIN.finish(run)
    first, last = (json.loads((run.round(k) / "set.json").read_text()) for k in (1, 2))
    assert first["dense"] is None and "upcycled" not in first
    assert (last["dense"], last["upcycled"]) == ("dense/model", "upcycled/model")
    assert list(finished_models(run))[4:] == ["dense", "upcycled"]


def test_each_round_has_a_set(run):
    make_inputs(run)
    for job in round_jobs(run):
        finish(job)
    TRAIN.finish(run)
    first, last = (json.loads((run.round(k) / "set.json").read_text()) for k in (1, 2))
    assert [row["languages"] for row in first["experts"]] == [["ja", "ko"], ["en", "fr"]]
    assert first["experts"][0]["documents"] == 2
    assert [row["languages"] for row in last["experts"]] == [["en"], ["fr"], ["ja"], ["ko"]]
    assert (first["round"], last["round"]) == (1, 2)
    assert list(finished_models(run)) == ["expert0", "expert1", "expert2", "expert3"]


@pytest.mark.parametrize(
    "number, language, weights",
    [
        (0, "ja", [1]),
        (1, "ja", [1, 0]),
        (1, "en", [0, 1]),
        (2, "en", [1, 0, 0, 0]),
    ],
)
def test_average_of_a_language_weighs_the_experts_of_any_round_by_what_they_are_for(
    run, monkeypatch, number, language, weights
):
    averaged = []
    monkeypatch.setattr(merging, "average_models", lambda *given: averaged.append(given))
    make_inputs(run)
    for job in round_jobs(run):
        finish(job)
    TRAIN.finish(run)
    merging.export_average(run.round(number), run.folder / "one", language)
    assert list(averaged[0][1].values()) == weights


@pytest.mark.parametrize(
    "words, said",
    [
        (["clustering=tfidf"], "clustering.method='tfidf' has none; set clustering=typology"),
        (["clustering.languages=null"], "name its languages, such as clustering.languages=[en,fr,"),
        (["rounds.experts=[4,2]"], "rounds.experts=[4, 2] and clustering.num_clusters=4: rounds have more"),
        (["clustering.num_clusters=0"], "clustering.num_clusters=0 must be at least 1"),
        (["rounds.train_iters=[5]"], "rounds.train_iters=[5] are not the iterations of 3 rounds"),
        (["rounds=single", "rounds.experts=[4]"], "rounds.experts=[4] is for rounds.kind=hmr; leave it out"),
        (["training.global_batch_size=6"], "does not divide into rounds of [1, 2, 4] experts"),
        (["rounds.kind=tree"], "rounds.kind='tree' is not known; use one of ['single', 'hmr', 'adapt']"),
    ],
)
def test_rounds_that_cannot_be_are_refused(words, said):
    with pytest.raises(ConfigError) as caught:
        compose([*TREE, *words])
    assert said in str(caught.value)


# --- On SLURM ---------------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch):
    return record_batches(monkeypatch)


def test_all_rounds_are_one_graph_in_which_a_child_waits_for_its_parent_alone(run, sent):
    submit_all(run)
    assert sent[-5:] == [
        ("experts", ["round0-expert0"], "afterok:43"),
        ("after-round0-expert0", ["round1-expert0", "round1-expert1"], "afterok:44"),
        ("after-round1-expert1", ["expert0", "expert1"], "afterok:45_1"),
        ("after-round1-expert0", ["expert2", "expert3"], "afterok:45_0"),
        ("train", ["train"], "afterany:44:45_0:45_1:46_0:46_1:47_0:47_1"),
    ]


@pytest.fixture
def ready(run, monkeypatch):
    """The run with everything before training."""
    monkeypatch.setattr("xelm_nemo.stages.stage.Stage.is_current", lambda stage, run: stage.name != "train")
    make_inputs(run)
    return run


def test_after_a_failure_what_is_left_is_submitted_and_waits_for_what_trains(ready, sent):
    submit_all(ready)
    jobs = {job.name: job for job in round_jobs(ready)}
    for name in ("round0-expert0", "round1-expert0", "expert2"):
        finish(jobs[name])
    sent.clear()
    queued = {"42_1": Queued("RUNNING", "None", "n0")}  # round1-expert1
    submit_all(ready, queued=queued)
    assert sent == [
        ("after-round1-expert1", ["expert0", "expert1"], "afterok:42_1"),
        ("experts", ["expert3"], ""),
        ("train", ["train"], "afterany:42_1:41_0:41_1:42"),
    ]


@pytest.mark.parametrize(
    "name, line",
    [
        ("expert0", ["round1-expert1", "expert0"]),  # with the missing model that it begins from
        ("round1-expert1", ["round1-expert1", "expert0", "expert1"]),  # with those that begin from it
    ],
)
def test_retry_of_one_expert_brings_its_line(ready, sent, name, line):
    for job in round_jobs(ready):
        if job.name not in ("round1-expert1", "expert0", "expert1", "expert3"):
            finish(job)
    submit_all(ready, only=[name])
    *models, closing = sent
    assert [model for _, names, _ in models for model in names] == line
    assert [after for _, _, after in models] == ["", "afterok:41"]
    assert closing[1] == ["train"]


def test_every_job_of_every_round_is_written_where_its_worker_reads_it(ready, sent):
    submit_all(ready)
    written = json.loads((ready.round(1) / "expert1/job.json").read_text())
    assert written["name"] == "round1-expert1" and written["clusters"] == [0, 1]


def test_xelms_languages_are_those_of_the_experiment():
    languages = compose(["+experiment=xelm16", "rounds=hmr"]).clustering.languages
    assert tuple(languages) == XELM_LANGUAGES
