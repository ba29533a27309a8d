"""A fit's memory is that of its vocabulary and of a vector a document, however long the documents are."""

import json

import numpy as np
import pytest

from tests.helpers.memory import measure_program

pytestmark = pytest.mark.slow
NUM_DOCUMENTS, WORDS_EACH = 12_000, 2_500
TEXT_BYTES = 190_000_000
BEFORE = """
from xelm_nemo.clustering import tfidf
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.corpus.config import CorpusConfig
from xelm_nemo.stages.cluster import fit
from xelm_nemo.stages.run import Run
import scipy.sparse, sklearn.preprocessing, torch

tfidf._CHARACTERS_A_BATCH = 1 << 21
clustering = ClusteringConfig(method="tfidf", num_clusters=4, svd_dim=8, num_starts=1, max_iterations=2)
run = Run(RunConfig(corpus=CorpusConfig(path=sys.argv[1]), clustering=clustering))
Path(sys.argv[2]).mkdir()
"""


@pytest.fixture
def corpus(tmp_path):
    """Long documents of words that a few thousand of them share, some often and some seldom."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{rng.integers(10**6)}x" for _ in range(20_000)])
    chance = 1 / np.arange(50, 50 + len(words))
    path = tmp_path / "corpus" / "train" / "00000" / "a.jsonl"
    path.parent.mkdir(parents=True)
    with path.open("w") as lines:
        for _ in range(NUM_DOCUMENTS):
            text = " ".join(rng.choice(words, WORDS_EACH, p=chance / chance.sum()))
            lines.write(json.dumps({"text": text}) + "\n")
    assert path.stat().st_size > TEXT_BYTES
    return tmp_path / "corpus"


def test_fit_holds_neither_the_texts_nor_their_matrix(corpus, tmp_path):
    measured = measure_program(BEFORE, "fit(run, Path(sys.argv[2]))", corpus, tmp_path / "clusterer")
    assert (tmp_path / "clusterer" / "centroids.safetensors").is_file()
    assert measured.own_bytes - measured.own_bytes_before < TEXT_BYTES / 3


BEFORE_TERMS = """
from xelm_nemo.clustering import tfidf

tfidf._CHARACTERS_A_BATCH, tfidf._MOST_TERMS_TO_SORT = 1 << 20, 200_000
vectorizer = tfidf.TfidfVectorizer(max_features=1000, num_threads=2, memory_bytes=16 << 20)

def texts(num_terms, each=1000):
    for start in range(0, num_terms, each):
        yield "common " + " ".join(f"w{number:x}" for number in range(start, start + each))

vectorizer.fit(texts(300_000))  # the tables and the buffers of a merge
"""


def test_fit_on_more_different_terms_takes_no_more_memory():
    """Tables that are full go to files; the most frequent terms are found while these are merged."""
    peaks = [
        measure_program(BEFORE_TERMS, "vectorizer.fit(texts(int(sys.argv[1])))", num_terms).own_bytes
        for num_terms in (1_000_000, 4_000_000)
    ]
    assert abs(peaks[1] - peaks[0]) < 15 << 20
