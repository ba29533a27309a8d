import collections
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import upstream_clusterer
from tests.helpers.commands import run_well
from xelm_nemo import artifacts
from xelm_nemo.clustering import upstream
from xelm_nemo.clustering.clusterer import TfidfClusterer, fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.clustering.features import FeatureSettings, TextFeatures
from xelm_nemo.clustering.upstream import read_upstream
from xelm_nemo.clustering.upstream_writer import write_upstream
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.corpus.documents import Document
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.stages.export import export_source

ROOT = Path(__file__).parents[2]
TEXTS = ["the right to life 12", "le droit à la vie", "das Recht auf Leben", "право на жизнь", "la ley"]
CENTERS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5]])


@pytest.fixture
def theirs():
    return upstream_clusterer.fitted(TEXTS)


@pytest.fixture
def folder(tmp_path, monkeypatch, theirs):
    with monkeypatch.context() as patch:
        return upstream_clusterer.write(tmp_path, patch, theirs, CENTERS)


def config(source, **settings):
    return ClusteringConfig(**{"source": str(source), "num_clusters": 3, **settings})


def documents(texts):
    return [Document(f"train/0/a.jsonl|{i}", text, None) for i, text in enumerate(texts)]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_clusterer_of_theirs_gives_texts_the_same_vectors_and_clusters(
    tmp_path, monkeypatch, theirs, protocol
):
    with monkeypatch.context() as patch:
        upstream_clusterer.write(tmp_path, patch, theirs, CENTERS, protocol)
    ours = fit_clusterer(documents(TEXTS), config(tmp_path))
    texts = [*TEXTS, "le droit 2024 to", "", "unbekannt", "Право 3rd to to"]
    vectors = theirs.transform(texts)
    assert ours.features.transform(texts) == pytest.approx(vectors, abs=1e-6)
    square = ((vectors[:, None] - CENTERS.numpy()) ** 2).sum(2)
    assert ours.assign(documents(texts)) == square.argmin(1).tolist()


def test_the_centroids_keep_their_bits_wherever_the_tensor_was(tmp_path, monkeypatch, theirs):
    for on_gpu in (True, False):
        with monkeypatch.context() as patch:
            upstream_clusterer.write(tmp_path, patch, theirs, CENTERS[:, 1:3], on_gpu=on_gpu)
        with pytest.raises(ArtifactError, match=r"strides|belong together"):
            read_upstream(tmp_path)
        with monkeypatch.context() as patch:
            upstream_clusterer.write(tmp_path, patch, theirs, CENTERS, on_gpu=on_gpu)
        assert np.array_equal(read_upstream(tmp_path)[1]["centroids"], CENTERS)


def test_the_number_of_clusters_has_to_be_theirs(folder):
    with pytest.raises(
        ConfigError, match=r"clustering\.num_clusters=8.*has 3 clusters; set clustering\.num_"
    ):
        fit_clusterer(documents(TEXTS * 2), config(folder, num_clusters=8))
    with pytest.raises(ConfigError, match=r"set clustering\.method=tfidf"):
        fit_clusterer(documents(TEXTS), config(folder, method="random"))


@pytest.mark.parametrize("name", ["tfidf.pkl", "kmeans.pkl"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"has no {name}"):
        read_upstream(folder)


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def in_a_tensor(hostile):
    """Bytes that torch.load would run, where a tensor's numbers should be."""
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, hostile):
        pickle.dump(value, buffer, protocol=2)
    return Calls(torch.storage._load_from_bytes, buffer.getvalue())


def zipped_tensor():
    buffer = io.BytesIO()
    torch.save(CENTERS, buffer)
    return Calls(torch.storage._load_from_bytes, buffer.getvalue())


HOSTILE = {
    "os.system": lambda ran: Calls(os.system, f"touch {ran}"),
    "eval": lambda ran: Calls(eval, f"open({str(ran)!r}, 'w')"),
    "open": lambda ran: Calls(open, str(ran), "w"),
    "getattr": lambda ran: Calls(getattr, "text", "__class__"),
    "run": lambda ran: Calls(subprocess.run, ["touch", str(ran)]),
    "partial": lambda ran: Calls(__import__("functools").partial, os.system, f"touch {ran}"),
    "inside another": lambda ran: collections.OrderedDict(steps=[Calls(os.system, f"touch {ran}")]),
    "as a state": lambda ran: Calls(collections.OrderedDict, state=Calls(os.system, f"touch {ran}")),
    "in a tensor": lambda ran: in_a_tensor(Calls(os.system, f"touch {ran}")),
    "torch.load": lambda ran: Calls(torch.load, str(ran)),
    "zip": lambda ran: zipped_tensor(),
    "numpy object array": lambda ran: np.array([Calls(os.system, f"touch {ran}")], dtype=object),
    "numpy.load": lambda ran: Calls(np.load, str(ran)),
    "a plain value": lambda ran: {"cluster_centers": [1.0, 2.0]},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["tfidf.pkl", "kmeans.pkl"])
def test_a_hostile_pickle_is_refused_and_not_run(folder, tmp_path, name, kind):
    ran = tmp_path / "ran"
    (folder / name).write_bytes(pickle.dumps(HOSTILE[kind](ran)))
    with pytest.raises(ArtifactError, match=r"holds|cannot be read"):
        read_upstream(folder)
    assert not ran.exists()


def array(shape, raw=b"\0" * 48, code="f4"):
    """Pickles as an array of that shape, whatever numpy would say."""
    made_from = (1, shape, np.dtype(code), False, raw)
    return Calls(np.zeros(0).__reduce__()[0], np.ndarray, (0,), b"b", state=made_from)


NO_ARRAYS = {
    "negative": array((-3, -4)),
    "negative, once": array((-12,), b""),
    "floats": array((3.0, 4.0)),
    "booleans": array((True, True), b"\0" * 4),
    "a list": array([3, 4]),
    "a number": array(12),
    "letters": array(("3", "4")),
    "none": array(None),
    "text for bytes": array((3, 4), "\0" * 48),
    "made by a call": Calls(np.ndarray, "f4", (3, 4), False, b""),
    "made by a call, of objects": Calls(np.ndarray, "O8", (3, 2), False, b"\0" * 48),
    "of no dimension": array((), b"\0" * 4),
    "of three": array((3, 2, 2)),
    "without a row": array((0, 4), b""),
}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_only_looks_like_an_array_is_refused_in_one_line(folder, kind):
    (folder / "kmeans.pkl").write_bytes(pickle.dumps({"cluster_centers": NO_ARRAYS[kind]}))
    with pytest.raises(ArtifactError, match=r"holds an array|holds \d+ bytes|do not belong|cannot be read"):
        read_upstream(folder)


def test_array_that_is_one_is_read_the_same_way(folder):
    (folder / "kmeans.pkl").write_bytes(pickle.dumps({"cluster_centers": array((3, 4))}))
    assert read_upstream(folder)[1]["centroids"].tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("term", [7, ("le", "la"), b"le", None, "le\ud800"], ids=repr)
def test_a_term_that_is_no_text_is_refused(folder, theirs, monkeypatch, term):
    vectorizer = theirs.named_steps["tfidf"]
    vectorizer.vocabulary_[term] = vectorizer.vocabulary_.pop("le")
    with monkeypatch.context() as patch:
        upstream_clusterer.write(folder, patch, theirs, CENTERS)
    with pytest.raises(ArtifactError, match=r"the term .*, which is no text"):
        read_upstream(folder)


@pytest.mark.parametrize("idf", [array((), b"\0" * 8, "f8"), array((-5, 1), b"", "f8")])
def test_idf_that_is_no_row_is_refused(folder, theirs, monkeypatch, idf):
    theirs.named_steps["tfidf"]._tfidf.idf_ = idf
    with monkeypatch.context() as patch:
        upstream_clusterer.write(folder, patch, theirs, CENTERS)
    with pytest.raises(ArtifactError, match=r"holds an array|cannot be read"):
        read_upstream(folder)


def test_the_hostile_pickles_do_harm_where_they_are_simply_read(tmp_path):
    ran = tmp_path / "ran"
    for kind in ("os.system", "eval", "run", "inside another", "in a tensor", "numpy object array"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.serialization, "_get_restore_location", lambda where: None)
            try:
                pickle.loads(pickle.dumps(HOSTILE[kind](ran)))
            except Exception:
                assert kind == "in a tensor"
        if kind != "in a tensor":  # torch itself refuses it since it reads weights only
            assert ran.exists(), kind
            ran.unlink()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"\x80\x04\x95",
        b"\x80\x02]q\x00(h\x00h\x00e",
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2**31 entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # 2**63 bytes to follow
        b"(" * 1_000_000,
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02\x82\x01.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",
    ],
)
def test_damaged_and_oversized_pickles_end_in_one_line(folder, raw):
    (folder / "tfidf.pkl").write_bytes(raw)
    with pytest.raises(ArtifactError) as caught:
        read_upstream(folder)
    assert len(str(caught.value).splitlines()) == 1 and str(folder) in str(caught.value)


@pytest.mark.parametrize("change", [{"lowercase": False}, {"ngram_range": (1, 2)}, {"sublinear_tf": True}])
def test_a_vectorizer_with_other_settings_is_refused_by_their_names(tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        other = upstream_clusterer.fitted(TEXTS, **change)
        upstream_clusterer.write(tmp_path, patch, other, CENTERS)
    with pytest.raises(ArtifactError, match=next(iter(change))):
        read_upstream(tmp_path)


def test_the_process_that_reads_can_do_nothing_else():
    attempts = {
        "open": "open('/etc/hostname')",
        "write": "open('/tmp/written', 'w')",
        "system": "os.system('true') and 1/0",
        "fork": "os.fork()",
        "socket": "socket.socket()",
        "kill": "os.kill(os.getppid(), 0)",
        "memory": "bytearray(1 << 32)",
    }
    program = [
        "import os, socket, sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from xelm_nemo.clustering.sandbox import confine",
        "assert confine(memory_bytes=1 << 30, cpu_seconds=5)",
        f"for name, code in {attempts!r}.items():",
        "    try: exec(code)",
        "    except Exception: print('refused', name)",
        "    else: print('done', name)",
    ]
    run = subprocess.run([sys.executable, "-I", "-c", "\n".join(program)], capture_output=True, text=True)
    assert run.stdout.split("\n")[:-1] == [f"refused {name}" for name in attempts], run.stderr


def test_the_reader_is_confined_before_it_reads(folder):
    program = [
        "import sys",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from xelm_nemo.clustering import upstream_pickles",
        "upstream_pickles._read = lambda file: open('/etc/hostname')",
        "upstream_pickles.main()",
    ]
    command = [sys.executable, "-I", "-S", "-c", "\n".join(program), str(folder)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert said["confined"] and said["refused"].startswith("tfidf.pkl cannot be read (PermissionError")


def test_where_nothing_confines_the_reader_a_warning_says_so(folder, monkeypatch, caplog):
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); import {module} as module; "
    program += "module.confine = lambda **_: False; module.main()"
    read_upstream(folder)
    assert caplog.messages == []
    monkeypatch.setattr(upstream, "_PROGRAM", program)
    read_upstream(folder)
    [said] = caplog.messages
    assert str(folder) in said and "take them from those that you trust" in said


def small_clusterer():
    rng = np.random.default_rng(0)
    features = TextFeatures(
        FeatureSettings("word", (1, 1), None),
        ["droit", "law", "right", "vie"],
        rng.random(4) + 1,
        rng.normal(size=(2, 4)),
    )
    return TfidfClusterer(3, features, rng.normal(size=(3, 2)).astype(np.float32))


def write(clusterer, folder):
    features = clusterer.features
    write_upstream(folder, features.terms, features.idf, features.components, clusterer.centroids)


def test_written_pickles_come_back_with_the_same_bits(tmp_path):
    clusterer = small_clusterer()
    write(clusterer, tmp_path)
    terms, arrays = read_upstream(tmp_path)
    assert terms == clusterer.features.terms
    assert np.array_equal(arrays["idf"], clusterer.features.idf)
    assert np.array_equal(arrays["components"], clusterer.features.components)
    assert np.array_equal(arrays["centroids"], clusterer.centroids)


def test_written_pickles_work_in_the_original_programs(tmp_path, monkeypatch):
    clusterer = small_clusterer()
    write(clusterer, tmp_path)
    upstream_clusterer.under_their_names(monkeypatch)
    with pytest.warns(UserWarning, match="1.2.1"):  # scikit-learn's, of its version
        pipeline = pickle.loads((tmp_path / "tfidf.pkl").read_bytes())
    kmeans = pickle.loads((tmp_path / "kmeans.pkl").read_bytes())
    texts = ["the law, 12 laws", "right droit vie", ""]
    assert pipeline.transform(texts) == pytest.approx(clusterer.features.transform(texts), abs=1e-6)
    assert kmeans.n_clusters == 3 and np.array_equal(kmeans.cluster_centers, clusterer.centroids)


def test_export_writes_a_clusterer_for_the_original_programs(tmp_path):
    clusterer = small_clusterer()
    with artifacts.build(tmp_path / "clusterer", artifacts.Recipe("clusterer", {})) as part:
        clusterer.save(part)
    export_source(ExportConfig(str(tmp_path / "clusterer"), str(tmp_path / "out"), format="upstream"))
    assert read_upstream(tmp_path / "out")[0] == clusterer.features.terms


@pytest.mark.slow
def test_the_cluster_command_takes_a_clusterer_of_theirs(tmp_path, folder):
    settings = [f"clustering.source={folder}", "clustering.num_clusters=3", f"output={tmp_path / 'run'}"]
    run_well("cluster", "corpus=udhr", "seed_model=random", "training.global_batch_size=24", *settings)
    assert "3 clusters" in (tmp_path / "run/clusters/report.md").read_text()
