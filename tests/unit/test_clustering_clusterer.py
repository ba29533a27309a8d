import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from xelm_nemo.clustering.clusterer import (
    Clusterer,
    RandomClusterer,
    TfidfClusterer,
    TypologyClusterer,
    fit_clusterer,
)
from xelm_nemo.clustering.config import METHODS, ClusteringConfig
from xelm_nemo.clustering.report import cluster_report, report_markdown
from xelm_nemo.corpus.documents import Document
from xelm_nemo.errors import ArtifactError, ConfigError, CorpusError

WORDS = {
    "en": "the right to life and law",
    "fr": "le droit et la loi de la vie",
    "ru": "право на жизнь и закон",
}


def documents(num_each=8):
    """Documents of three languages in turn, each of its own language's words in its own order."""
    rng = np.random.default_rng(0)
    return [
        Document(f"train/0/a.jsonl|{3 * i + j}", " ".join(rng.permutation(text.split())), lang)
        for i in range(num_each)
        for j, (lang, text) in enumerate(WORDS.items())
    ]


def config(method, **settings):
    return ClusteringConfig(**{"method": method, "num_clusters": 3, "svd_dim": 3, **settings})


def test_tfidf_puts_each_language_into_its_own_cluster():
    clusters = fit_clusterer(documents(), config("tfidf")).assign(documents())
    assert clusters == [0, 1, 2] * 8


def test_tfidf_assigns_to_the_nearest_centroid_whatever_the_balance():
    clusterer = fit_clusterer(documents(), config("tfidf"))
    english = [Document(f"x|{i}", WORDS["en"], None) for i in range(5)]
    assert clusterer.assign(english) == [0] * 5


def test_typology_goes_by_the_languages_found_in_the_corpus():
    clusterer = fit_clusterer(documents(), config("typology"))
    assert clusterer.cluster_of == {"en": 0, "fr": 1, "ru": 2}
    assert clusterer.assign(documents()) == [0, 1, 2] * 8


def test_typology_can_be_told_its_languages():
    clusterer = fit_clusterer(documents(), config("typology", languages=["ru", "fr", "en", "es"]))
    assert set(clusterer.cluster_of) == {"ru", "fr", "en", "es"}


def test_random_clusters_depend_on_the_document_and_the_seed_alone():
    many = documents(200)
    clusterer = fit_clusterer(many, config("random"))
    clusters = clusterer.assign(many)
    assert clusterer.assign(many[::-1]) == clusters[::-1]
    assert fit_clusterer(many, config("random", seed=1)).assign(many) != clusters
    assert all(150 < count < 250 for count in Counter(clusters).values())


@pytest.mark.parametrize(
    ("seed", "expected"), [(0, [2, 2, 1, 4, 2, 2, 4, 0, 0, 6]), (1234, [2, 1, 0, 7, 3, 6, 3, 7, 4, 1])]
)
def test_random_clusters_are_those_of_every_version(seed, expected):
    some = [Document(f"train/00000/mc4.jsonl|{line}", "x", None) for line in range(10)]
    assert RandomClusterer(8, seed).assign(some) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_clusterer_assigns_as_the_fitted_one(tmp_path, method):
    fitted = fit_clusterer(documents(), config(method))
    fitted.save(tmp_path)
    loaded = Clusterer.load(tmp_path)
    assert type(loaded) is type(fitted)
    assert (loaded.kind, loaded.num_clusters) == (method, 3)
    assert loaded.assign(documents()) == fitted.assign(documents())
    assert json.loads((tmp_path / "clusterer.json").read_text())["kind"] == method


def test_a_tfidf_clusterer_keeps_the_bits_that_the_router_needs(tmp_path):
    fitted = fit_clusterer(documents(), config("tfidf"))
    fitted.save(tmp_path)
    loaded = Clusterer.load(tmp_path)
    assert isinstance(loaded, TfidfClusterer)
    assert np.array_equal(loaded.centroids, fitted.centroids)
    assert np.array_equal(loaded.features.transform(["the loi"]), fitted.features.transform(["the loi"]))


FIT = """
import os, sys
cores = int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = sys.argv[2]
from pathlib import Path
import numpy as np, torch
from xelm_nemo import device
from xelm_nemo.clustering.clusterer import fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.documents import Document
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.files import write_json
assert (device.cores(), torch.get_num_threads()) == (cores, cores)
words = [word for row in documents() for word in row["text"].split()]
draws = np.random.default_rng(0).integers(len(words) - 20, size=40_000)
corpus = [Document(f"a|{n}", " ".join(words[at : at + 20]), None) for n, at in enumerate(draws)]
clusterer = fit_clusterer(corpus, ClusteringConfig(num_clusters=5, svd_dim=20, num_starts=1))
clusterer.save(Path(sys.argv[1]))
write_json(Path(sys.argv[1], "assignment.json"), clusterer.assign(corpus))
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_processes_with_other_numbers_of_threads_make_the_same_clusterer_and_clusters(tmp_path):
    made = []
    for run, cores in enumerate((1, 2, 2)):
        folder = tmp_path / str(run)
        folder.mkdir()
        subprocess.run([sys.executable, "-W", "ignore", "-c", FIT, str(folder), str(cores)], check=True)
        made.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert {"features.safetensors", "centroids.safetensors", "assignment.json"} < made[0].keys()
    assert made[0] == made[1] == made[2]
    assert Counter(json.loads(made[0]["assignment.json"])).keys() == set(range(5))


class Stream:
    """Documents that are made anew each time; there are more from the `grows`-th time on."""

    def __init__(self, grows=None):
        self.grows, self.times = grows, 0

    def __iter__(self):
        self.times += 1
        yield from documents(8 if self.grows is None or self.times < self.grows else 9)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_gives_the_clusterer_of_the_list(tmp_path, monkeypatch, method):
    fit_clusterer(documents(), config(method)).save(tmp_path / "list")
    monkeypatch.setattr("xelm_nemo.clustering.tfidf._CHARACTERS_A_BATCH", 100)
    fit_clusterer(Stream(), config(method)).save(tmp_path / "stream")
    names = sorted(path.name for path in (tmp_path / "list").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "stream").iterdir())
    for name in names:
        assert (tmp_path / "stream" / name).read_bytes() == (tmp_path / "list" / name).read_bytes(), name


def test_a_corpus_that_grows_meanwhile_is_refused():
    with pytest.raises(CorpusError, match="had 24 documents and has 27 when it is read again"):
        fit_clusterer(Stream(grows=2), config("tfidf"))


def test_no_room_for_temporary_files_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xelm_nemo.clustering.features.store_rows", full)
    with pytest.raises(ArtifactError, match=r"xelm_rows_.* cannot be written \(No space.*; set TMPDIR"):
        fit_clusterer(documents(), config("tfidf"))


def test_blocks_of_documents_do_not_change_the_clusters(monkeypatch):
    clusterer = fit_clusterer(documents(), config("tfidf"))
    monkeypatch.setattr("xelm_nemo.clustering.clusterer._DOCUMENTS_A_BLOCK", 5)
    assert clusterer.assign(documents()) == [0, 1, 2] * 8
    assert clusterer.assign([]) == []


@pytest.mark.parametrize("sizes", [[], [24], [5, 0, 19]], ids=str)
def test_lists_of_documents_come_back_one_by_one_with_their_clusters(sizes):
    clusterer, some = fit_clusterer(documents(), config("typology")), iter(documents())
    pairs = list(clusterer.assigned([next(some) for _ in range(size)] for size in sizes))
    assert pairs == list(zip(documents(), [0, 1, 2] * 8, strict=True))[: len(pairs)]
    assert len(pairs) == sum(sizes)


def test_a_fault_while_reading_ahead_ends_the_assignment():
    def torn():
        yield documents()
        raise CorpusError("torn")

    with pytest.raises(CorpusError, match="torn"):
        list(fit_clusterer(documents(), config("tfidf")).assigned(torn()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("num_clusters", "fault"), [(0, "leaves no cluster"), (25, "cannot divide 24 documents")]
)
def test_more_clusters_than_documents_is_an_error(method, num_clusters, fault):
    with pytest.raises(ConfigError, match=rf"clustering\.num_clusters={num_clusters} {fault}"):
        fit_clusterer(documents(), config(method, num_clusters=num_clusters))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ConfigError, match=rf"clustering\.seed={seed}"):
        fit_clusterer(documents(), config("tfidf", seed=seed))


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(ConfigError, match=r"clustering\.method='kmeans'.*tfidf.*typology.*random"):
        fit_clusterer(documents(), config("kmeans"))


@pytest.mark.parametrize("lang", ["de", None])
def test_a_document_whose_language_has_no_cluster_is_named(lang):
    clusterer = TypologyClusterer(2, {"en": 0, "fr": 1})
    with pytest.raises(CorpusError, match=rf"valid/0/a\|7 has lang={lang!r}.*en fr"):
        clusterer.assign([Document("valid/0/a|7", "x", lang)])


def test_documents_without_language_cannot_be_clustered_by_language():
    with pytest.raises(CorpusError, match=r"x\|0 has no language.*corpus\.lang_key"):
        fit_clusterer([*documents(), Document("x|0", "x", None)], config("typology"))


@pytest.mark.parametrize("text", ["{}", '{"kind": "other"}', "[]", '{"kind": "random", "num_clusters": 2}'])
def test_a_clusterer_file_that_describes_none_is_refused(tmp_path, text):
    (tmp_path / "clusterer.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"clusterer\.json does not describe a clusterer"):
        Clusterer.load(tmp_path)


def test_centroids_of_another_clusterer_are_refused(tmp_path):
    fit_clusterer(documents(), config("tfidf", num_clusters=2)).save(tmp_path)
    two = (tmp_path / "centroids.safetensors").read_bytes()
    fit_clusterer(documents(), config("tfidf")).save(tmp_path)
    (tmp_path / "centroids.safetensors").write_bytes(two)
    with pytest.raises(ArtifactError, match=r"centroids \[2, 3\].*\[3, 3\]"):
        Clusterer.load(tmp_path)


def test_the_report_adds_files_up_and_names_the_heaviest_terms():
    clusterer = fit_clusterer(documents(), config("tfidf"))
    files = [[{"en": 8}, {"fr": 8}, {"de": 8}], [{"?": 1}, {}, {}]]
    report = cluster_report(clusterer, files)
    assert (report["kind"], report["num_clusters"], report["num_documents"]) == ("tfidf", 3, 25)
    assert report["largest_over_mean"] == pytest.approx(9 / 25 * 3)
    first = report["clusters"][0]
    assert (first["documents"], first["share"], first["languages"]) == (9, 9 / 25, {"en": 8, "?": 1})
    assert set(first["top_terms"][:6]) == set(WORDS["en"].split())
    assert json.loads(json.dumps(report)) == report


def test_an_empty_cluster_is_in_the_report():
    report = cluster_report(TypologyClusterer(2, {"en": 0, "fr": 1}), [[{"en": 1}, {}]])
    assert [row["documents"] for row in report["clusters"]] == [1, 0]
    assert "top_terms" not in report["clusters"][0]


def test_the_report_lists_files_with_bad_lines():
    files = [{"file": f"{n}.jsonl", "bad_lines": n, "kinds": {"torn": n} if n else {}} for n in range(13)]
    clusterer = TypologyClusterer(1, {"en": 0})
    report = cluster_report(clusterer, [[{"en": 1}]] * 13, files)
    assert [file["file"] for file in report["skipped"]] == [f"{n}.jsonl" for n in range(1, 13)]
    lines = report_markdown(report).splitlines()
    assert "78 bad lines were skipped (78 torn):" in lines
    assert lines[-2:] == ["- 10.jsonl: 10", "- and 2 more files"]


def test_the_markdown_report_is_a_table_that_no_term_can_break():
    row = {"cluster": 0, "documents": 3, "share": 1.0, "languages": {"en": 2, "fr": 1}}
    report = {
        "kind": "tfidf",
        "num_clusters": 1,
        "num_documents": 3,
        "largest_over_mean": 1.0,
        "clusters": [row | {"top_terms": ["a |", "`", "law"]}],
        "skipped": [],
    }
    assert report_markdown(report).splitlines()[2:] == [
        "| cluster | documents | share | languages | top terms |",
        "| --- | --- | --- | --- | --- |",
        "| 0 | 3 | 100.0% | en 2 fr 1 | `a␣¦` `'` `law` |",
        "",
        "The largest cluster is 1.00 times the mean.",
    ]
