import json
import shutil

import pytest

from xelm_nemo import device
from xelm_nemo.clustering.clusterer import Clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.corpus.config import CorpusConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.files import write_json
from xelm_nemo.launch import pool
from xelm_nemo.stages import assignment
from xelm_nemo.stages.cluster import CLUSTER, REPORT_JSON, clusterer_recipe, fit, language_experts
from xelm_nemo.stages.plan import check_places
from xelm_nemo.stages.run import Run


@pytest.fixture
def experts_of(tmp_path):
    """The languages' experts where the clusters hold these numbers of documents by language."""

    def experts_of(*mixes):
        run = Run(RunConfig(output=str(tmp_path)))
        rows = [{"cluster": k, "languages": mix} for k, mix in enumerate(mixes)]
        write_json(run.clusters / REPORT_JSON, {"clusters": rows})
        return language_experts(run)

    return experts_of


def test_a_language_belongs_to_the_cluster_with_most_of_it(experts_of):
    assert experts_of({"de": 3, "en": 1}, {"en": 4, "de": 2}) == {"de": 0, "en": 1}


def test_of_two_equal_clusters_the_lower_has_the_language(experts_of):
    assert experts_of({"en": 2}, {"en": 2}) == {"en": 0}


def test_documents_without_a_language_have_no_expert_by_language(experts_of):
    assert experts_of({"?": 5, "en": 1}, {"?": 9}) == {"en": 0}
    assert experts_of({"?": 5}) == {}


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (2, 3), (4, 1), (50, 1)])
def test_processes_that_assign_share_the_cores(tmp_path, monkeypatch, processes, threads):
    """Six cores, and five files: no more than six threads in all."""
    texts = ["cat dog", "dog sun", "sun moon", "moon cat"]
    for name in ("train/0/a", "train/0/b", "train/0/c", "train/0/d", "valid/0/a"):
        path = tmp_path / "corpus" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = CorpusConfig(path=str(tmp_path / "corpus"))
    clustering = ClusteringConfig(num_clusters=2, svd_dim=2)
    run = Run(RunConfig(corpus=corpus, clustering=clustering, output=str(tmp_path / "run")))
    used = []

    def results(work, tasks, folder, *, processes):
        for task in tasks.values():
            yield work(task)
            used.append(assignment._load(task.clusterer, task.digest, task.threads))

    monkeypatch.setattr(device, "cores", lambda: 6)
    monkeypatch.setattr(Run, "processes", lambda *_: processes)
    monkeypatch.setattr(pool, "results", results)
    CLUSTER.make(run)
    assert [clusterer.features._vectorizer.num_threads for clusterer in used] == [threads] * 5


@pytest.fixture
def run_on(tmp_path):
    """A run on a corpus with a shard in English, one in French and one in Russian."""
    for name, lang in {
        "train/00000": "en",
        "train/00001": "fr",
        "train/00002": "ru",
        "valid/0": "en",
    }.items():
        folder = tmp_path / "corpus" / name
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text(json.dumps({"text": "words", "lang": lang}) + "\n")

    def run_on(shards):
        clustering = ClusteringConfig(method="typology", num_clusters=1, fit_on=shards)
        return Run(RunConfig(corpus=CorpusConfig(path=str(tmp_path / "corpus")), clustering=clustering))

    return run_on


@pytest.mark.parametrize(
    ("shards", "languages", "inputs"),
    [
        ("all", {"en", "fr", "ru"}, {"train"}),
        ("train/00001", {"fr"}, {"train/00001"}),
        (["train/00002", "train/00000"], {"en", "ru"}, {"train/00000", "train/00002"}),
    ],
)
def test_a_clusterer_is_fitted_on_the_chosen_shards_and_made_from_them(
    tmp_path, run_on, shards, languages, inputs
):
    run = run_on(shards)
    check_places(run, [CLUSTER])
    fit(run, tmp_path)
    assert Clusterer.load(tmp_path).cluster_of.keys() == languages
    assert clusterer_recipe(run).inputs.keys() == inputs


def test_bad_lines_are_told_of_once_though_the_corpus_is_read_again(tmp_path, caplog):
    folder = tmp_path / "corpus" / "train" / "00000"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in ("cat dog", "dog sun", "sun moon")]
    (folder / "a.jsonl").write_text("\n".join([*lines, "torn", ""]))
    corpus = CorpusConfig(path=str(tmp_path / "corpus"), on_bad_line="skip")
    fit(Run(RunConfig(corpus=corpus, clustering=ClusteringConfig(num_clusters=2, svd_dim=2))), tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "train/00000/a.jsonl: 1 bad lines skipped (1 not JSON), the first is line 4"
    ]


def test_a_clusterer_of_another_corpus_is_not_taken_for_this_ones(tmp_path):
    def run_of(name, texts):
        for split in ("train", "valid"):
            folder = tmp_path / name / split / "00000"
            folder.mkdir(parents=True)
            (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        corpus = CorpusConfig(path=str(tmp_path / name))
        clustering = ClusteringConfig(num_clusters=2, svd_dim=2)
        run = Run(RunConfig(corpus=corpus, clustering=clustering, output=str(tmp_path / f"run_{name}")))
        CLUSTER.make(run)
        return run

    ours, theirs = (
        run_of("ours", ["cat dog", "dog sun", "sun moon"]),
        run_of("theirs", ["a sea", "a ship"] * 2),
    )
    assert CLUSTER.is_current(ours)
    shutil.rmtree(ours.clusterer)
    shutil.copytree(theirs.clusterer, ours.clusterer)
    assert not CLUSTER.is_current(ours)


def test_shards_that_are_not_there_are_named_before_anything_is_made(run_on):
    with pytest.raises(ConfigError, match=r"clustering\.fit_on names \['train/00007'\], and .*corpus has no"):
        check_places(run_on(["train/00001", "train/00007"]), [CLUSTER])
