"""`prepare`, `cluster` and `shard` over many files: killed, parallel, out of room, with others' clusters."""

import gzip
import json
import resource
import time

import pytest

from tests.helpers.commands import SMALL, run, run_well, start
from xelm_nemo import command
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.launch import pool
from xelm_nemo.stages import pipeline

pytestmark = pytest.mark.slow

SETTINGS = [*SMALL, "clustering=random", "clustering.num_clusters=2"]


def write_corpus(root, *, files=6, copies=1, line=lambda row: json.dumps(row).encode()):
    """UDHR dealt over files of two shards; `valid` has one file."""
    rows = [{"text": row["text"], "lang": row["lang"]} for row in documents()] * copies
    for number in range(files):
        path = root / f"train/{number % 2}/{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line(row) + b"\n" for row in rows[number::files]))
    (root / "valid/00000").mkdir(parents=True)
    (root / "valid/00000/v.jsonl").write_bytes(b"".join(line(row) + b"\n" for row in rows[:20]))
    return root


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def made_by(tmp_path, name, corpus, *settings):
    """Clusters and tokens of a run over a corpus."""
    run_well("shard", *SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / name}", *settings)
    return {part: contents(tmp_path / name / part) for part in ("clusters", "tokens")}


def test_any_number_of_processes_makes_the_same_bytes(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    settings = ["clustering=tfidf_char", "launch.max_parallel=2"]
    one = made_by(tmp_path, "one", corpus, *settings)
    monkeypatch.setattr(pool, "_BYTES_A_PROCESS", 1000)
    arguments = [*SETTINGS, *settings, f"corpus.path={corpus}", f"output={tmp_path / 'two'}"]
    assert command.run(lambda: pipeline.main("shard", arguments)) == 0
    assert {part: contents(tmp_path / "two" / part) for part in one} == one


def test_killed_between_files_goes_on_with_the_others_and_never_with_another_recipe(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    whole = made_by(tmp_path, "whole", corpus)
    folder = tmp_path / "killed"
    arguments = [*SETTINGS, f"corpus.path={corpus}", f"output={folder}"]
    for part, done in (
        (".clusters.part", "train/1/3.jsonl.json"),
        (".tokens.part", "train/tokenised/2.json"),
    ):
        process = start("shard", *arguments)
        while not (folder / part / ".work" / done).is_file():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        process.kill()
        process.communicate(timeout=30)
        assert not (folder / part[1:-5]).exists()
    kept = folder / ".tokens.part/.work/train/tokenised/0.json"
    before = kept.stat().st_mtime_ns
    process = start("shard", *arguments)
    while process.poll() is None:
        if kept.is_file():
            assert kept.stat().st_mtime_ns == before, "a file that was done was done again"
        time.sleep(0.001)
    assert process.communicate()[0] is not None and process.returncode == 0
    assert {name: contents(folder / name) for name in whole} == whole
    assert not (folder / "tokens/.work").exists()


def test_work_left_by_another_recipe_is_thrown_away(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    whole = made_by(tmp_path, "whole", corpus)
    stale = tmp_path / "stale/.clusters.part/.work"
    run_well("prepare", *SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / 'stale'}")
    stale.mkdir(parents=True)
    (stale / "made_from").write_text("another recipe")
    (stale.parent / "train").mkdir()
    (stale.parent / "train/stray.jsonl").write_text("stale")
    assert made_by(tmp_path, "stale", corpus)["clusters"] == whole["clusters"]


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_without_room_the_old_output_stays_and_one_line_says_so(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", files=1, copies=8)
    before = made_by(tmp_path, "run", corpus)
    arguments = [*SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / 'run'}"]
    with (corpus / "train/0/0.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    process = start("shard", *arguments, preexec_fn=small_files)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (
        "cannot be written (File too large)" in line and "make room, and run the same command again" in line
    )
    assert {name: contents(tmp_path / "run" / name) for name in before} == before
    run_well("shard", *arguments)
    assert contents(tmp_path / "run/tokens") != before["tokens"]


def test_bad_lines_end_the_run_or_are_skipped_and_reported(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", files=2)
    with (corpus / "train/1/1.jsonl").open("ab") as file:
        file.write(b'\n{"text": ""}\n{"text": "torn')
    arguments = [*SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / 'run'}"]
    code, _, error = run("shard", *arguments)
    assert code == 2 and "1.jsonl:271 is empty" in error and "corpus.on_bad_line=skip" in error
    run_well("shard", *arguments, "corpus.on_bad_line=skip")
    report = json.loads((tmp_path / "run/clusters/report.json").read_text())
    kinds = {"blank text": 1, "empty": 1, "torn": 1}
    lines = [[271, "empty"], [272, "blank text"], [273, "torn"]]
    assert report["skipped"] == [{"file": "train/1/1.jsonl", "bad_lines": 3, "kinds": kinds, "lines": lines}]
    counts = json.loads((tmp_path / "run/tokens/counts.json").read_text())
    assert sum(cluster["documents"] for cluster in counts["train"]) == report["num_documents"] == 539


def test_clusters_of_the_original_programs_are_read(tmp_path):
    corpus, given = write_corpus(tmp_path / "corpus", files=2), tmp_path / "given"
    for path in corpus.rglob("*.jsonl"):
        name = path.relative_to(corpus).as_posix()
        rows = [(f"/old/data/{name}|{n}", n % 2) for n, _ in enumerate(path.open())]
        (given / name).parent.mkdir(parents=True)
        text = "".join(
            json.dumps({"sp_id": sp_id, "cluster": k}, separators=(",", ":")) + "\n" for sp_id, k in rows
        )
        (given / name).write_text(text.replace("/", "\\/") if "train" in name else text)
    arguments = [*SETTINGS, f"corpus.path={corpus}", f"clustering.assignment={given}"]
    code, _, error = run("cluster", *arguments, f"output={tmp_path / 'a'}")
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2 and "matches no document of this corpus" in line
    remap = line.split("set '")[1].split("'")[0]
    assert remap == 'clustering.remap="/old/data/="'
    run_well("shard", *arguments, remap, f"output={tmp_path / 'b'}")
    rows = [json.loads(line) for line in (tmp_path / "b/clusters/train/0/0.jsonl").open()]
    assert rows[:3] == [{"sp_id": f"train/0/0.jsonl|{n}", "cluster": n % 2} for n in range(3)]


def test_layouts_of_the_original_programs_examples_are_read(tmp_path):
    """c-BTM's example has a named validation set; X-ELM's has `id`, `lang` and index files."""
    rows = [row for row in documents() if row["lang"] in ("de", "en")]
    root = tmp_path / "example"
    for folder in ("train/00000", "train/00001", "valid/C4_small/00000"):
        (root / folder).mkdir(parents=True)
        numbered = [{"text": row["text"], "id": n, "lang": row["lang"]} for n, row in enumerate(rows)]
        (root / folder / "mc4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
        (root / folder / "mc4.jsonl.fairseq.idx.npy").write_bytes(b"index")
    settings = [
        "clustering=typology",
        "corpus.valid_split=valid/C4_small",
        "corpus.test_split=valid/C4_small",
    ]
    run_well("shard", *SMALL, *settings, f"corpus.path={root}", f"output={tmp_path / 'run'}")
    report = json.loads((tmp_path / "run/clusters/report.json").read_text())
    assert [row["languages"] for row in report["clusters"]] == [{"de": 64}, {"en": 62}]
    assert (tmp_path / "run/clusters/valid/C4_small/00000/mc4.jsonl").is_file()


def test_mc4_becomes_a_corpus_and_a_killed_preparation_goes_on(tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    for lang in ("de", "en", "sw"):
        rows = [json.dumps({"text": row["text"]}) + "\n" for row in documents() if row["lang"] == lang]
        for name, some in (("", rows[:-5]), ("-validation", rows[-5:])):
            path = source / f"c4-{lang}{name}.tfrecord-00000-of-00001.json.gz"
            path.write_bytes(gzip.compress("".join(some).encode()))
    arguments = [
        "corpus=mc4_raw",
        f"corpus.raw={source}",
        "corpus.languages=[de,en,sw]",
        "corpus.num_shards=2",
    ]
    run_well("prepare", *arguments, f"output={tmp_path / 'whole'}")
    process = start("prepare", *arguments, f"output={tmp_path / 'killed'}")
    while not list((tmp_path / "killed").glob(".corpus.part/.work/dealt/1.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=30)
    run_well("shard", *SETTINGS, *arguments, "corpus.builtin=null", f"output={tmp_path / 'sharded'}")
    run_well("prepare", *arguments, f"output={tmp_path / 'killed'}")
    whole = contents(tmp_path / "whole/corpus")
    assert contents(tmp_path / "killed/corpus") == contents(tmp_path / "sharded/corpus") == whole
    assert len(list((tmp_path / "whole/corpus").glob("valid_*/00000/mc4.jsonl"))) == 3
