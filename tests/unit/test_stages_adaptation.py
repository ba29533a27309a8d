"""Experts that are added to a finished set: what they begin from, and that the set stays as it is."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.helpers.commands import refuse
from tests.helpers.finished_sets import SHAPE, write_finished_set
from tests.helpers.rounds import finish, make_inputs, opened
from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts, write_facts
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.errors import ArtifactError, ConfigError, RunFolderError
from xelm_nemo.stages import submit
from xelm_nemo.stages.claim import claim
from xelm_nemo.stages.cluster import language_experts
from xelm_nemo.stages.jobs import expert_job, finished_models, round_jobs
from xelm_nemo.stages.rounds import ancestors_tokens, check_base
from xelm_nemo.stages.rows import models, open_run, rows
from xelm_nemo.stages.run import Run, settled
from xelm_nemo.stages.shard import SHARD
from xelm_nemo.stages.train import TRAIN


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


def grow(run):
    """The run as it is once its experts, of he, sv, pl and az, are trained."""
    run.folder.mkdir()
    claim(run)
    make_inputs(run)
    languages = dict(zip(("he", "sv", "pl", "az"), range(16, 20), strict=True))
    rows = [{"cluster": k, "documents": 3, "languages": {lang: 3}} for lang, k in languages.items()]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))
    for job in round_jobs(run):
        job.save()
        finish(job)
    TRAIN.finish(run)
    return run


def retrain(run, clusters):
    for k in clusters:
        with artifacts.build(run.experts / f"expert{k}/model", Recipe("model", {"of": 100 + k})) as part:
            write_facts(part, ModelFacts(SHAPE, 300, "fp32", "t", name=f"expert{k}"))


def test_finished_experts_are_not_trained_over_from_another_set(base, tmp_path):
    run = grow(grown(base))
    other = write_finished_set(tmp_path / "other")
    retrain(other, range(16))
    before, elsewhere = contents(run.folder), grown(base, f"rounds.base={other.folder}")
    with pytest.raises(RunFolderError) as caught:
        claim(elsewhere)
    said = str(caught.value)
    assert f"adds to the set that was in rounds.base='{base.folder}'" in said
    assert f"rounds.base='{other.folder}' holds another (its experts)" in said and "\n" not in said
    assert contents(run.folder) == before


def test_set_that_changed_in_its_place_is_another_set(base):
    run = grow(grown(base))
    retrain(base, [3])  # no newcomer's donor: the grown set lists it all the same
    with pytest.raises(RunFolderError, match=r"holds another \(its experts\)"):
        claim(run)
    with artifacts.build(base.clusterer, Recipe("clusterer", {"of": "others"})):
        pass
    with pytest.raises(RunFolderError, match=r"holds another \(its clusterer, experts\)"):
        claim(run)


def test_set_may_move_and_the_run_goes_on(base, tmp_path):
    run = grow(grown(base))
    moved = base.folder.rename(tmp_path / "moved")
    elsewhere = grown(base, f"rounds.base={moved}")
    claim(elsewhere)
    assert submit.to_train(round_jobs(elsewhere)) == []
    assert open_run(run.folder).config.rounds.base == str(moved)


def test_run_that_made_nothing_may_take_another_set(base, tmp_path):
    run, other = grown(base), write_finished_set(tmp_path / "other")
    run.folder.mkdir()
    claim(run)
    retrain(other, [0])
    elsewhere = grown(base, f"rounds.base={other.folder}")
    claim(elsewhere)
    make_inputs(elsewhere)
    claim(elsewhere)
    with pytest.raises(RunFolderError):
        claim(run)


def add_language(base, cluster, language):
    path = base.clusters / "report.json"
    held = json.loads(path.read_text())
    held["clusters"][cluster]["languages"][language] = 1
    path.write_text(json.dumps(held))


def test_language_of_the_set_without_distances_is_no_donor(base):
    jobs = round_jobs(grown(base))
    add_language(base, 0, "qaa")
    check_base(grown(base))
    assert round_jobs(grown(base)) == jobs
    with pytest.raises(ConfigError) as caught:
        check_base(grown(base, "rounds.languages=[he,sv,pl,qab]"))
    assert "has ['qab'], which are not in xelm_nemo/data" in str(caught.value)
    assert "qaa" not in str(caught.value)


def test_set_without_any_language_that_has_distances_is_refused(base):
    path = base.clusters / "report.json"
    path.write_text(json.dumps({"clusters": [{"cluster": 0, "documents": 1, "languages": {"qaa": 1}}]}))
    with pytest.raises(ConfigError, match="has no expert for a language that distances are known of"):
        check_base(grown(base))


def test_tokenizer_of_a_set_counts_by_what_it_is_not_by_where(base, tmp_path):
    run = grow(grown(base))
    before = SHARD.recipes(run)[run.tokenizer].stamp()
    moved = base.folder.rename(tmp_path / "moved")
    elsewhere = grown(base, f"rounds.base={moved}")
    assert SHARD.recipes(elsewhere)[run.tokenizer].stamp() == before
    with artifacts.build(moved / "tokenizer", Recipe("tokenizer", {"of": "others"})):
        pass
    assert SHARD.recipes(elsewhere)[run.tokenizer].stamp() != before


def test_status_of_a_grown_set_needs_no_base(base, tmp_path):
    run = grow(grown(base))
    started = models(run)[3]
    (run.experts / "expert18/model/manifest.json").unlink()
    for file in (run.experts / "expert19").rglob("*.json"):  # neither begun nor made
        file.unlink()
    known = {row.model: row.state for row in rows(run)}
    base.folder.rename(tmp_path / "moved")
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace(str(base.folder), str(tmp_path / "gone")))
    found = rows(open_run(run.folder))
    assert {row.model: row.state for row in found} == known
    assert known["expert16"] == "finished" and known["expert18"] != "finished"
    assert {row.steps for row in found} == {started.train_iters}


def test_grown_set_counts_the_ancestors_of_the_experts_that_it_was_given(tmp_path):
    base = opened(tmp_path)
    make_inputs(base)
    with artifacts.build(base.clusterer, Recipe("clusterer", {})):
        pass
    for job in round_jobs(base):
        with artifacts.build(job.model_folder, job.recipe()) as part:
            write_facts(part, ModelFacts(SHAPE, 300, "fp32", "t", name=job.name))
    TRAIN.finish(base)
    words = ["clustering=typology", "rounds.kind=adapt", "rounds.languages=[es]", "clustering.num_clusters=5"]
    run = Run(settled(compose([*words, f"rounds.base={base.folder}", f"output={tmp_path / 'grown'}"])))
    shares = [ancestors_tokens(base, f"expert{k}") for k in range(4)]
    assert all(shares)
    assert [ancestors_tokens(run, f"expert{k}") for k in range(5)] == [*shares, 0]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_grown_set_can_grow_again(base, tmp_path):
    run = grow(grown(base))
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
