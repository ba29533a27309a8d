"""Making shards takes the memory of a block of documents, however large the file is."""

import json
from itertools import cycle

import pytest

from tests.helpers.memory import measure_program
from xelm_nemo.clustering.assign import assignment_file, write_assignment
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.corpus.udhr import documents

pytestmark = pytest.mark.slow
NAME, CLUSTERS = "train/0/a.jsonl", 4
BEFORE = """
from xelm_nemo.shards.build import JoinPieces, TokeniseFile, join_pieces, load_encoder, tokenise_file

root, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
path, pieces = root / "train/0/a.jsonl", root / "pieces"

def make():
    tokenise_file(TokeniseFile(root, path, {}, False, root / "clusters", 4, tokenizer, "digest", pieces))
    for cluster in range(4):
        join_pieces(JoinPieces([pieces], cluster, "uint16", root / f"cluster{cluster}/train"))

load_encoder(tokenizer, "digest")
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((row["text"] for row in documents()), TokenizerConfig(vocab_size=2048), folder)
    return folder


def corpus(root, num_bytes):
    """A corpus of one file, of the shipped texts over and over, with clusters in turn."""
    path = root / NAME
    path.parent.mkdir(parents=True)
    size = lines = 0
    with path.open("w") as file:
        for row in cycle(list(documents())):
            size += file.write(json.dumps({"text": row["text"]}) + "\n")
            lines += 1
            if size >= num_bytes:
                break
    rows = ((f"{NAME}|{line}", line % CLUSTERS) for line in range(lines))
    write_assignment(assignment_file(root / "clusters", NAME), rows)
    return root


def test_larger_file_takes_no_more_memory(tmp_path, tokenizer):
    small, large = (corpus(tmp_path / str(size), size) for size in (20_000_000, 100_000_000))
    peaks = [measure_program(BEFORE, "make()", root, tokenizer).own_bytes for root in (small, large)]
    sizes = [sum(path.stat().st_size for path in root.glob("cluster*/train.bin")) for root in (small, large)]
    assert sizes[1] > 4 * sizes[0] > 0
    assert peaks[1] - peaks[0] < 16 << 20
