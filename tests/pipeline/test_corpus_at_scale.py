"""`prepare`, `cluster` and `shard` over many files: killed, parallel, out of room, with others' clusters."""

import gzip
import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tests.helpers.commands import SMALL, start
from tests.helpers.full_disk import room_for_files_of
from xelm_nemo import command
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.launch import pool
from xelm_nemo.stages import pipeline
from xelm_nemo.stages.__main__ import main as stage_job

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


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory):
    """One for all, for it takes longer than the rest."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=2048), folder)
    SETTINGS.append(f"tokenizer.path={folder}")
    yield
    SETTINGS.pop()


def here(verb, *arguments):
    """Run a command in this process, which has imported everything; its exit code."""
    return command.run(lambda: pipeline.main(verb, [*map(str, arguments)]))


def refused(capsys, *arguments, verb="shard"):
    """The one line that ends a command."""
    capsys.readouterr()
    assert here(verb, *arguments) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def made_by(tmp_path, name, corpus, *settings):
    """Clusters and tokens of a run over a corpus."""
    assert here("shard", *SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / name}", *settings) == 0
    return {part: contents(tmp_path / name / part) for part in ("clusters", "tokens")}


def test_any_number_of_processes_makes_the_same_bytes(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    settings = ["clustering=tfidf_char", "launch.max_parallel=2"]
    one = made_by(tmp_path, "one", corpus, *settings)
    monkeypatch.setattr(pool, "_BYTES_A_PROCESS", 1000)
    assert made_by(tmp_path, "two", corpus, *settings) == one


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


def test_files_of_every_format_in_one_corpus_give_the_clusters_and_tokens_of_plain_ones(tmp_path):
    plain, mixed = write_corpus(tmp_path / "plain", files=4), tmp_path / "mixed"
    for path, suffix in zip(
        sorted(plain.rglob("*.jsonl")), ("", ".gz", ".zst", ".parquet", ".gz"), strict=True
    ):
        there = mixed / path.relative_to(plain)
        there.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            rows = [json.loads(line) for line in path.open()]
            pq.write_table(pa.Table.from_pylist(rows), there.with_suffix(suffix))
        else:
            pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[suffix]
            there.with_name(there.name + suffix).write_bytes(pack(path.read_bytes()))
    one, other = (
        made_by(tmp_path, f"run {root.name}", root, "clustering=tfidf_char") for root in (plain, mixed)
    )
    assert other["tokens"] == one["tokens"]
    clusters = [
        [
            [json.loads(line)["cluster"] for line in made[name].splitlines()]
            for name in sorted(made)
            if name.parts[0] in ("train", "valid")
        ]
        for made in (one["clusters"], other["clusters"])
    ]
    assert clusters[0] == clusters[1] and len(clusters[0]) == 5
    assert len({name.suffixes[0] for name in other["clusters"] if name.parts[0] == "train"}) > 1


def job_of(folder, verb, part):
    """Do what a job of SLURM does that has a part of a stage; its exit code."""
    place = folder / "launch" / f"{verb}-{part[0]}"
    place.mkdir(parents=True, exist_ok=True)
    return command.run(lambda: stage_job(verb, folder / "config.yaml", place, part))


def test_parts_that_jobs_share_give_the_bytes_of_one_process(tmp_path, capsys):
    corpus, folder = write_corpus(tmp_path / "corpus"), tmp_path / "shared"
    whole = made_by(tmp_path, "whole", corpus, "clustering=tfidf_char")
    arguments = [*SETTINGS, "clustering=tfidf_char", f"corpus.path={corpus}", f"output={folder}"]
    assert here("prepare", *arguments) == 0  # writes the run's configuration

    def job(verb, part):
        return job_of(folder, verb, part)

    assert job("cluster", "begin") == 0
    assert job("cluster", "0/3") == job("cluster", "2/3") == 0
    assert len(list(folder.glob(".clusters.part/train/*/*.jsonl"))) == 4
    assert not (folder / "clusters").exists()
    assert job("cluster", "1/3") == 0
    done = {path: path.stat().st_mtime_ns for path in folder.glob(".clusters.part/.work/**/*.json")}
    assert job("cluster", "1/3") == 0 and len(done) == 7
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert here("cluster", *arguments) == 0
    assert job("cluster", "1/3") == 0  # nothing is left to do
    capsys.readouterr()
    assert job("shard", "0/2") == 2
    assert "tokenizer is missing; run the command that makes it first" in capsys.readouterr().err
    for part in ("begin", "0/2", "1/2"):
        assert job("shard", part) == 0
    assert here("shard", *arguments) == 0
    assert {name: contents(folder / name) for name in whole} == whole


def test_part_of_work_that_nobody_has_begun_is_refused(tmp_path, capsys):
    corpus, folder = write_corpus(tmp_path / "corpus"), tmp_path / "run"
    assert here("prepare", *SETTINGS, f"corpus.path={corpus}", f"output={folder}") == 0
    assert job_of(folder, "cluster", "begin") == 0
    with (corpus / "train/0/0.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    capsys.readouterr()
    assert job_of(folder, "cluster", "0/2") == 2
    assert "clusters has not been begun, or its inputs have changed since" in capsys.readouterr().err


def test_work_left_by_another_recipe_is_thrown_away(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    whole = made_by(tmp_path, "whole", corpus)
    stale = tmp_path / "stale/.clusters.part/.work"
    assert here("prepare", *SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / 'stale'}") == 0
    stale.mkdir(parents=True)
    (stale / "made_from").write_text("another recipe")
    (stale.parent / "train").mkdir()
    (stale.parent / "train/stray.jsonl").write_text("stale")
    assert made_by(tmp_path, "stale", corpus)["clusters"] == whole["clusters"]


# What there is no room for: the command, its settings, the folder, and the file in it.
FULL = {
    "clusterer": ("cluster", ["clustering=tfidf"], "clusterer", "features.safetensors"),
    "assignment": ("cluster", [], "clusters", "0.jsonl"),
    "pieces": ("shard", [], "tokens", "train.bin"),
    "joined pieces": ("shard", [], "tokens", "train.bin"),
    "dealt documents": ("prepare", ["corpus.num_shards=1"], "corpus", "mc4.jsonl"),
    "shard of dealt documents": ("prepare", ["corpus.num_shards=1"], "corpus", "mc4.jsonl"),
}


@pytest.mark.parametrize("what", FULL)
def test_without_room_the_old_output_stays_and_one_line_says_so(tmp_path, capsys, what):
    verb, settings, made, name = FULL[what]
    files = 6 if "joined" in what or "shard" in what else 1  # of several none is too large, but together
    if verb == "prepare":
        source = write_raw(tmp_path / "raw", files)
        arguments = ["corpus=mc4_raw", f"corpus.raw={source}", "corpus.languages=[de]", *settings]
    else:
        source = write_corpus(tmp_path / "corpus", files=files)
        arguments = [*SETTINGS, f"corpus.path={source}", *settings]
    arguments.append(f"output={tmp_path / 'run'}")
    assert here(verb, *arguments) == 0
    before = contents(tmp_path / "run" / made)
    with min(source.rglob("*.json*")).open("a") as file:
        file.write('{"text": "one more"}\n')
    largest = max(len(content) for path, content in before.items() if path.name == name)
    with room_for_files_of(largest // 2):
        line = refused(capsys, *arguments, verb=verb)
    assert "cannot be written (File too large)" in line
    assert "make room, and run the same command again" in line
    assert contents(tmp_path / "run" / made) == before
    assert here(verb, *arguments) == 0
    assert contents(tmp_path / "run" / made) != before


def write_raw(root, files):
    """German as mC4 has it, in several files, with one for validation."""
    root.mkdir()
    rows = [json.dumps({"text": row["text"]}) + "\n" for row in documents() if row["lang"] == "de"]
    for number in range(files):
        (root / f"c4-de.tfrecord-{number:05}-of-00006.json").write_text("".join(rows[number::files]))
    (root / "c4-de-validation.tfrecord-00000-of-00001.json").write_text(rows[0])
    return root


def test_bad_lines_end_the_run_or_are_skipped_and_reported(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", files=2)
    with (corpus / "train/1/1.jsonl").open("ab") as file:
        file.write(b'\n{"text": ""}\n{"text": "torn')
    arguments = [*SETTINGS, f"corpus.path={corpus}", f"output={tmp_path / 'run'}"]
    line = refused(capsys, *arguments)
    assert "1.jsonl:270 is empty" in line and "set corpus.on_bad_line=skip" in line
    assert here("shard", *arguments, "corpus.on_bad_line=skip") == 0
    report = json.loads((tmp_path / "run/clusters/report.json").read_text())
    kinds = {"blank text": 1, "empty": 1, "torn": 1}
    lines = [[270, "empty"], [271, "blank text"], [272, "torn"]]
    assert report["skipped"] == [{"file": "train/1/1.jsonl", "bad_lines": 3, "kinds": kinds, "lines": lines}]
    counts = json.loads((tmp_path / "run/tokens/counts.json").read_text())
    assert sum(cluster["documents"] for cluster in counts["train"]) == report["num_documents"] == 539


def test_clusters_of_the_original_programs_are_read(tmp_path, capsys):
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
    line = refused(capsys, *arguments, f"output={tmp_path / 'a'}")
    assert "matches no document of this corpus" in line
    remap = line.split("set '")[1].split("'")[0]
    assert remap == 'clustering.remap="/old/data/="'
    assert here("shard", *arguments, remap, f"output={tmp_path / 'b'}") == 0
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
    assert here("shard", *SETTINGS, *settings, f"corpus.path={root}", f"output={tmp_path / 'run'}") == 0
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
    assert here("prepare", *arguments, f"output={tmp_path / 'whole'}") == 0
    process = start("prepare", *arguments, f"output={tmp_path / 'killed'}")
    while not list((tmp_path / "killed").glob(".corpus.part/.work/dealt/1.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=30)
    assert here("prepare", *arguments, f"output={tmp_path / 'killed'}") == 0
    assert here("shard", *SETTINGS, *arguments, f"output={tmp_path / 'sharded'}") == 0
    whole = contents(tmp_path / "whole/corpus")
    assert contents(tmp_path / "killed/corpus") == contents(tmp_path / "sharded/corpus") == whole
    assert len(list((tmp_path / "whole/corpus").glob("valid_*/00000/mc4.jsonl"))) == 3
