"""Token shards equal what Megatron's own builder writes for the same documents in the same order."""

import json
import random

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from xelm_nemo.clustering.assign import assignment_file, write_assignment
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.documents import read_documents
from xelm_nemo.corpus.layout import list_files
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer, train_tokenizer
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ArtifactError
from xelm_nemo.shards.build import JoinPieces, TokeniseFile, join_pieces, shard_prefix, tokenise_file

CLUSTERS = 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of four files, its clusters (the last one empty in each file but one), and a tokenizer."""
    root, clusters, tokenizer = (
        tmp_path_factory.mktemp(name) for name in ("corpus", "clusters", "tokenizer")
    )
    rows, noise = list(documents()), random.Random(3)
    for number in range(4):
        path = root / f"train/{number % 2}/{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows[number::4]))
        name = f"train/{number % 2}/{number}.jsonl"
        own = [
            (f"{name}|{line}", noise.randrange(3 if number == 2 else 2))
            for line in range(len(rows[number::4]))
        ]
        write_assignment(assignment_file(clusters, name), own)
    train_tokenizer((row["text"] for row in rows), TokenizerConfig(vocab_size=2048), tokenizer)
    return root, clusters, tokenizer


def tasks_of(corpus, folder, paths):
    root, clusters, tokenizer = corpus
    return [
        TokeniseFile(root, path, {}, False, clusters, CLUSTERS, tokenizer, "digest", folder / str(number))
        for number, path in enumerate(paths)
    ]


def shards_of(corpus, folder):
    """Tokenise all files, last first, and join; what each file had."""
    tasks = tasks_of(corpus, folder / "pieces", list_files(corpus[0], "train"))
    counts = [tokenise_file(task)["counts"] for task in reversed(tasks)][::-1]
    for cluster in range(CLUSTERS):
        prefix = shard_prefix(folder, cluster, "train")
        join_pieces(JoinPieces([task.pieces for task in tasks], cluster, "uint16", prefix))
    return counts


def megatrons(corpus, folder):
    """The definition: one document after the other into Megatron's builder."""
    root, clusters, tokenizer = corpus
    lines = (line for path in clusters.rglob("*.jsonl") for line in path.open())
    cluster_of = {row["sp_id"]: row["cluster"] for row in map(json.loads, lines)}
    tokenizer = load_tokenizer(tokenizer)
    builders = [IndexedDatasetBuilder(str(folder / f"{k}.bin"), dtype=np.uint16) for k in range(CLUSTERS)]
    for document in read_documents(root, "train"):
        ids = encode_document(tokenizer, document.text)
        builders[cluster_of[document.sp_id]].add_document(np.array(ids, dtype=np.uint16), [len(ids)])
    for cluster, builder in enumerate(builders):
        builder.finalize(str(folder / f"{cluster}.idx"))


def test_shards_are_megatrons_to_the_byte(corpus, tmp_path):
    counts = shards_of(corpus, tmp_path)
    megatrons(corpus, tmp_path)
    for cluster in range(CLUSTERS):
        for suffix in ("bin", "idx"):
            ours = tmp_path / f"cluster{cluster}/train.{suffix}"
            assert ours.read_bytes() == (tmp_path / f"{cluster}.{suffix}").read_bytes()
        tokens = sum(file[cluster]["tokens"] for file in counts)
        assert 2 * tokens == (tmp_path / f"{cluster}.bin").stat().st_size


def test_cluster_without_a_document_has_an_empty_shard(corpus, tmp_path):
    prefix = shard_prefix(tmp_path, 7, "train")
    join_pieces(JoinPieces([tmp_path / "none"], 7, "int32", prefix))
    builder = IndexedDatasetBuilder(str(tmp_path / "empty.bin"), dtype=np.int32)
    builder.finalize(str(tmp_path / "empty.idx"))
    for suffix in (".bin", ".idx"):
        assert (
            prefix.with_suffix(suffix).read_bytes() == (tmp_path / "empty").with_suffix(suffix).read_bytes()
        )


def test_pieces_of_an_interrupted_attempt_are_thrown_away(corpus, tmp_path):
    [task] = tasks_of(corpus, tmp_path, list_files(corpus[0], "train")[:1])
    task.pieces.mkdir(parents=True)
    (task.pieces / "2.bin").write_bytes(b"torn")
    counts = tokenise_file(task)["counts"]
    has_piece = [(task.pieces / f"{cluster}.bin").is_file() for cluster in range(CLUSTERS)]
    assert has_piece == [count["documents"] > 0 for count in counts]
    assert not has_piece[2]


def test_document_without_a_cluster_is_refused(corpus, tmp_path):
    root, clusters, _ = corpus
    path = root / "other/0/new.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"text": "new"}\n')
    write_assignment(assignment_file(clusters, "other/0/new.jsonl"), [])
    [task] = tasks_of(corpus, tmp_path, [path])
    with pytest.raises(ArtifactError, match=r"has no cluster for the document 'other/0/new\.jsonl\|0'"):
        tokenise_file(task)
