"""Rounds of a run: what each expert is trained from and on, what is submitted, and what the sets list."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.commands import refuse
from tests.helpers.finished_sets import write_finished_set
from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.clustering.typology import XELM_LANGUAGES, typology_clusters
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.launch.slurm import Queued
from xelm_nemo.stages import submit
from xelm_nemo.stages.claim import claim
from xelm_nemo.stages.cluster import language_experts
from xelm_nemo.stages.jobs import all_rounds, dense_job, expert_job, finished_models, round_jobs
from xelm_nemo.stages.models import models_table
from xelm_nemo.stages.pipeline import stages_of
from xelm_nemo.stages.rounds import ancestors_tokens, check_base
from xelm_nemo.stages.rows import models
from xelm_nemo.stages.run import Run, settled
from xelm_nemo.stages.train import TRAIN

TREE = [
    *("rounds=hmr", "clustering.num_clusters=4", "clustering.languages=[en,fr,ja,ko]"),
    *("training.global_batch_size=32", "launch=slurm", "launch.slurm.gpus_per_rank=0"),
]


def opened(tmp_path, *words):
    run = Run(settled(compose([*TREE, f"output={tmp_path / 'run'}", *words])))
    run.folder.mkdir(exist_ok=True)
    claim(run)
    return run


@pytest.fixture
def run(tmp_path):
    return opened(tmp_path)


def make_inputs(run, languages=("en", "fr", "ja", "ko")):
    """What jobs are made from, as empty artifacts, and a report with a language for each cluster."""
    for folder, kind in [(run.tokens, "tokens"), (run.seed_weights, "model"), (run.clusters, "clusters")]:
        with artifacts.build(folder, Recipe(kind, {})):
            pass
    rows = [
        {"cluster": k, "documents": 1, "languages": {lang: 1}}
        for lang, k in typology_clusters(languages, len(languages)).items()
    ]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))


def finish(job, **content):
    with artifacts.build(job.model_folder, job.recipe()) as part:
        (part / "content.json").write_text(json.dumps(content))


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
    "words, said",
    [
        (["clustering=tfidf"], "clustering.method='tfidf' has none; set clustering=typology"),
        (["clustering.languages=null"], "name its languages, such as clustering.languages=[en,fr,"),
        (["rounds.experts=[4,2]"], "rounds.experts=[4, 2] and clustering.num_clusters=4: rounds have more"),
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
    """Batches instead of jobs: number and name of each, and what it waits for."""
    batches = []

    def take(batch, config, folder):
        batches.append((batch.name.removeprefix("run-"), [job.name for job in batch.jobs], batch.after))
        number = str(40 + len(batches))
        return [f"{number}_{k}" for k in range(len(batch.jobs))] if len(batch.jobs) > 1 else [number]

    monkeypatch.setattr(submit, "submit", take)
    return batches


def submit_all(run, only=(), queued=None):
    planned = submit.plan(run, stages_of("train", run.config), "train", run.folder / "config.yaml", only)
    submit.submit_all(run, planned, run.folder, queued or {})


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


def test_every_job_of_every_round_is_written_where_its_worker_reads_it(ready, sent):
    submit_all(ready)
    written = json.loads((ready.round(1) / "expert1/job.json").read_text())
    assert written["name"] == "round1-expert1" and written["clusters"] == [0, 1]


# --- Beside a finished set --------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    return write_finished_set(tmp_path / "xelm16")


def grown(base, *words):
    names = ["+experiment=hmr_adapt", "precision=fp32", f"rounds.base={base.folder}"]
    return Run(settled(compose([*names, f"output={base.folder.parent / 'run'}", *words])))


def test_newcomers_begin_from_the_experts_of_their_nearest_languages(base):
    known = language_experts(base)
    jobs = round_jobs(grown(base))
    assert [job.name for job in jobs] == ["expert16", "expert17", "expert18", "expert19"]
    donors = [known[lang] for lang in ("ar", "en", "ru", "tr")]  # of he, sv, pl, az
    assert [job.init for job in jobs] == [str(base.experts / f"expert{k}/model") for k in donors]
    assert [job.clusters for job in jobs] == [[16 + n, donor] for n, donor in enumerate(donors)]
    assert {job.global_batch_size for job in jobs} == {64}


def test_newcomers_have_the_shape_of_the_set(base):
    job = round_jobs(grown(base))[0]
    assert (job.shape.hidden_size, job.shape.num_layers) == (32, 2)


def test_set_and_router_grow_and_leave_the_old_ones_as_they_are(base):
    run, before = grown(base), contents(base.folder)
    languages = dict(zip(("he", "sv", "pl", "az"), range(16, 20), strict=True))
    assert language_experts(run) == language_experts(base) | languages
    make_inputs(run)
    rows = [{"cluster": k, "documents": 3, "languages": {lang: 3}} for lang, k in languages.items()]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))
    for job in round_jobs(run):
        finish(job)
    TRAIN.finish(run)
    experts = json.loads((run.experts / "set.json").read_text())["experts"]
    assert [row["cluster"] for row in experts] == list(range(20))
    assert [row["languages"] for row in experts[16:]] == [["he"], ["sv"], ["pl"], ["az"]]
    folders = [(run.experts / row["model"]).resolve() for row in experts]
    assert folders == [folder.resolve() for folder in finished_models(run).values()]
    assert contents(base.folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_grown_set_can_grow_again(base, tmp_path):
    run = grown(base)
    run.folder.mkdir()
    claim(run)
    make_inputs(run)
    rows = [
        {"cluster": 16 + n, "documents": 3, "languages": {lang: 3}}
        for n, lang in enumerate(["he", "sv", "pl", "az"])
    ]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))
    for job in round_jobs(run):
        finish(job)
    TRAIN.finish(run)
    words = ["rounds.languages=[no]", "clustering.num_clusters=21", f"output={tmp_path / 'third'}"]
    third = grown(run, *words)
    check_base(third)
    (norwegian,) = round_jobs(third)
    assert norwegian.init == str(expert_job(run, 17).model_folder.resolve())  # Swedish is nearest
    assert norwegian.clusters == [20, 17]


def test_set_is_found_from_anywhere_and_where_it_was_moved_to(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(settled(compose(["+experiment=hmr_adapt", "rounds.base=xelm16", "output=run"])))
    jobs = round_jobs(run)
    monkeypatch.chdir("/")
    assert round_jobs(run) == jobs
    moved = base.folder.rename(tmp_path / "moved")
    config = dataclasses.replace(run.config.rounds, base=str(moved))
    elsewhere = Run(dataclasses.replace(run.config, rounds=config))
    assert differing_keys(elsewhere.config, run.config) == []
    assert [Path(job.init).relative_to(moved) for job in round_jobs(elsewhere)] == [
        Path(job.init).relative_to(base.folder) for job in jobs
    ]


@pytest.mark.parametrize(
    "words, said",
    [
        (["clustering.num_clusters=21"], "=21 does not count the 16 experts of .* 4 new ones; set .*=20"),
        (["clustering=tfidf"], "was clustered by 'typology'; set clustering.method=typology"),
        (["rounds.languages=[he,sv,pl,ru]"], r"has \['ru'\], which .* has an expert for; leave them out"),
        (["rounds.languages=[he,sv,pl,xx]"], "'xx'"),
    ],
)
def test_set_that_cannot_be_added_to_so_is_refused(base, words, said):
    with pytest.raises(ConfigError, match=said):
        check_base(grown(base, *words))


def test_set_that_is_not_finished_is_not_added_to(base):
    path = base.experts / "set.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"experts": held["experts"][1:]}))
    with pytest.raises(ArtifactError, match=r"lacks experts \[0\]; finish that run first"):
        check_base(grown(base))


def test_place_without_a_set_is_refused_before_anything_is_written(tmp_path, capsys):
    words = ["+experiment=hmr_adapt", f"rounds.base={tmp_path / 'none'}", f"output={tmp_path / 'run'}"]
    assert "holds no run; set it to the run folder of a finished set" in refuse(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["rounds.base=null"], "rounds.base is not set"),
        (["rounds.languages=[he,he]"], "must be new languages, each once"),
        (["clustering.num_clusters=4"], "leaves no cluster for the set in rounds.base"),
        (["upcycle.enabled=true"], "upcycle.enabled=True does not go with rounds.kind=adapt"),
        (["dense.enabled=true"], "dense.enabled=True does not go with rounds.kind=adapt"),
        (["training.train_clusters=[3]"], "[3] are not among clusters 16..19"),
        (["training.global_batch_size=8"], "rounds.languages=['he', 'sv', 'pl', 'az'], 4 experts, x"),
    ],
)
def test_adaptation_that_cannot_be_is_refused(words, said):
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=hmr_adapt", *words])
    assert said in str(caught.value)


def test_xelms_languages_are_those_of_the_experiment():
    languages = compose(["+experiment=xelm16", "rounds=hmr"]).clustering.languages
    assert tuple(languages) == XELM_LANGUAGES
