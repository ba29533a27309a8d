import itertools
import math

import pytest
import torch

from tests.helpers.bigrams import BigramModel, LetterTokenizer, encode
from xelm_nemo.errors import CheckpointError, CorpusError
from xelm_nemo.evaluation.scoring import HeldOutDocument, ModelSource, encode_documents, score_documents

TEXTS = ["ab", "b a bb", "a", "bbbb ab", "ba"]


def encoded(texts=TEXTS, seq_length=100):
    documents = [HeldOutDocument(text) for text in texts]
    return encode_documents(documents, encode=encode, tokenizer=LetterTokenizer(), seq_length=seq_length)


def source(model, fingerprint="1"):
    return ModelSource("expert0", fingerprint, lambda: model)


def never_load():
    raise AssertionError("the model was loaded although its scores are on disk")


def score(model_source, documents, folder, batch_size=2):
    return score_documents(model_source, documents, batch_size=batch_size, device="cpu", folder=folder)


def test_every_token_after_the_first_is_scored_the_end_included(tmp_path):
    model = BigramModel(0)
    for text, log_p in zip(TEXTS, score(source(model), encoded(), tmp_path), strict=True):
        ids = encode(text)
        expected = [math.log(model.probability(a, b)) for a, b in itertools.pairwise(ids)]
        torch.testing.assert_close(log_p, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_batches_and_padding_do_not_change_a_score(tmp_path, batch_size):
    alone = [score(source(BigramModel(0)), encoded([text]), tmp_path / text)[0] for text in TEXTS]
    together = score(source(BigramModel(0)), encoded(), tmp_path, batch_size)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_long_documents_are_cut_on_the_right_and_their_bytes_with_them():
    document = encoded(["abab ab"], seq_length=4)[0]
    assert document.ids == tuple(encode("abab ab")[:5])
    assert (document.num_tokens, document.num_bytes, document.is_truncated) == (4, len("abab"), True)


def test_a_document_that_fits_exactly_is_not_cut():
    document = encoded(["ab"], seq_length=3)[0]
    assert (document.num_tokens, document.num_bytes, document.is_truncated) == (3, 2, False)


def test_a_document_without_a_token_to_score_is_refused():
    with pytest.raises(CorpusError, match="'xyz' has 1 tokens"):
        encode_documents(
            [HeldOutDocument("xyz")], encode=lambda text: [0], tokenizer=LetterTokenizer(), seq_length=4
        )


def test_scores_on_disk_spare_loading_the_model(tmp_path):
    first = score(source(BigramModel(0)), encoded(), tmp_path)
    second = score(ModelSource("expert0", "1", never_load), encoded(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "fingerprint, texts, batch_size",
    [("2", TEXTS, 2), ("1", ["ab", "b a bb", "a", "bbbb ab", "bb"], 2), ("1", TEXTS, 3)],
    ids=["weights", "text", "batch size"],
)
def test_scores_of_something_else_are_not_taken(tmp_path, fingerprint, texts, batch_size):
    score(source(BigramModel(0)), encoded(), tmp_path)
    again = score(source(BigramModel(1), fingerprint), encoded(texts), tmp_path, batch_size)
    expected = score(source(BigramModel(1)), encoded(texts), tmp_path / "fresh", batch_size)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_a_model_that_diverged_is_named(tmp_path):
    model = BigramModel(0)
    model.table[1] = math.nan
    with pytest.raises(CheckpointError, match=r"expert0 .* not finite"):
        score(source(model), encoded(), tmp_path)
    assert not list(tmp_path.iterdir())
