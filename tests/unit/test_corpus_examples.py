"""Instruction data: examples of a source and a target as documents, and which of their tokens are learned."""

import json
from itertools import chain

import numpy as np
import pytest

from xelm_nemo.clustering.assign import assignment_file, write_assignment
from xelm_nemo.config.check import check
from xelm_nemo.config.compose import compose
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.documents import Document, read_documents
from xelm_nemo.corpus.examples import num_source_tokens
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer, train_tokenizer
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.shards.build import JoinPieces, TokeniseFile, join_pieces, tokenise_file
from xelm_nemo.shards.dataset import TokenStream
from xelm_nemo.stages.run import Run

KEYS = {"source_key": "src", "target_key": "tgt"}
ROWS = [
    {"src": "What is everyone born with? ", "tgt": "Rights and\nfreedoms. \n", "candidates": ["a", "b"]},
    {"src": "Translate:\nhuman rights", "tgt": "derechos humanos", "lang": "es"},
    {"src": "Say nothing more than one letter", "tgt": "a"},
]


def write(root, rows, name="train/0/a.jsonl"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_example_is_the_source_a_space_and_the_target(tmp_path):
    write(tmp_path, ROWS)
    first, second, _ = read_documents(tmp_path, "train", **KEYS)
    source = "What is everyone born with?"
    assert first == Document("train/0/a.jsonl|0", f"{source} Rights and\nfreedoms.", None, source)
    assert (second.text, second.source, second.lang) == (
        *("Translate:\nhuman rights derechos humanos", "Translate:\nhuman rights", "es"),
    )


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"src": "a"},
            r"has no 'tgt' among \['src'\]; each example needs both \(their keys are corpus\.source",
        ),
        ({"tgt": "a"}, "has no 'src'"),
        ({"src": "a", "tgt": " \n"}, "has tgt=' .n'"),
        ({"src": 1, "tgt": "a"}, "has src=1"),
        ({"src": "a", "tgt": "\ud800"}, "has half a surrogate pair in 'tgt'"),
    ],
)
def test_an_example_without_both_is_a_bad_line(tmp_path, row, message):
    write(tmp_path, [row])
    with pytest.raises(CorpusError, match=f"a.jsonl:1 {message}"):
        list(read_documents(tmp_path, "train", **KEYS))


def test_instruction_data_read_as_text_says_what_to_set(tmp_path):
    write(tmp_path, ROWS)
    with pytest.raises(
        CorpusError, match=r"no 'text' among .*; for instruction data set corpus\.source_key=src"
    ):
        list(read_documents(tmp_path, "train"))


@pytest.mark.parametrize(
    "settings, message",
    [
        (["corpus.path=x", "corpus.source_key=src"], "corpus.target_key=None: instruction data has both"),
        (["corpus=udhr", "corpus.source_key=src", "corpus.target_key=tgt"], "needs corpus.path"),
        (["corpus=mc4_raw", "corpus.source_key=src", "corpus.target_key=tgt"], "needs corpus.path"),
    ],
)
def test_settings_that_name_no_instruction_data_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check(compose(settings))


def test_keys_are_in_recipes_only_of_instruction_data():
    assert "source_key" not in Run(compose(["corpus=udhr"])).corpus_keys()
    keys = Run(compose(["corpus=instructions"])).corpus_keys()
    assert (keys["source_key"], keys["target_key"]) == ("src", "tgt")


def test_source_tokens_leave_the_last_one_to_the_target():
    assert num_source_tokens(10, 6) == 5
    assert num_source_tokens(np.array([5, 5, 5]), np.array([5, 9, 3])).tolist() == [4, 4, 2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=2048), folder)
    return folder


@pytest.fixture
def shard(tmp_path, tokenizer):
    """Prefix of the shard of the examples, and the documents."""
    path = write(tmp_path, ROWS)
    write_assignment(
        assignment_file(tmp_path / "clusters", "train/0/a.jsonl"),
        [(f"train/0/a.jsonl|{n}", 0) for n in range(3)],
    )
    task = TokeniseFile(
        tmp_path, path, KEYS, False, tmp_path / "clusters", 2, tokenizer, "d", tmp_path / "pieces"
    )
    tokenise_file(task)
    for cluster in range(2):
        join_pieces(JoinPieces([task.pieces], cluster, "uint16", tmp_path / f"cluster{cluster}/train"))
    return tmp_path / "cluster0/train", list(read_documents(tmp_path, "train", **KEYS))


def test_what_is_learned_of_a_shard_is_the_targets_and_the_ends(shard, tokenizer):
    prefix, examples = shard
    tokenizer = load_tokenizer(tokenizer)
    stream = TokenStream([prefix], 7, seed=None)
    blocks = range(-(-stream.num_tokens // 7))
    learned = np.concatenate([stream.is_target(index) for index in blocks])[: stream.num_tokens - 1]
    tokens = np.concatenate([stream.block(index)[1:] for index in blocks])[: stream.num_tokens - 1]
    expected = [encode_document(tokenizer, example.text) for example in examples]
    assert tokens.tolist() == [*chain(*expected)][1:]
    ends = np.split(learned, np.cumsum([len(ids) for ids in expected])[:-1] - 1)
    for ids, example, mask in zip(expected, examples, ends, strict=True):
        target = np.array(ids[-len(mask) :])[mask]
        assert target[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(target[:-1]) == " ".join(example.text.removeprefix(example.source).split())
        assert mask.sum() < len(mask) and not mask[: mask.argmax()].any() and mask[mask.argmax() :].all()


def test_cluster_without_an_example_among_others_changes_nothing(shard):
    prefix, _ = shard
    alone = TokenStream([prefix], 7, seed=1)
    together = TokenStream([prefix, prefix.parents[1] / "cluster1/train"], 7, seed=1)
    for index in range(20):
        assert alone.is_target(index).tolist() == together.is_target(index).tolist()
    assert alone.has_sources and together.has_sources


def test_every_epoch_learns_the_same_number_of_tokens(shard):
    prefix, _ = shard
    stream = TokenStream([prefix], 1, seed=5)
    epochs = np.stack([stream.is_target(index) for index in range(3 * stream.num_tokens)]).reshape(3, -1)
    assert len(set(epochs.sum(1).tolist())) == 1
