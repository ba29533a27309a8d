import functools
import itertools
import math
import time

import pytest
import torch

from tests.helpers.bigrams import BigramModel, LetterTokenizer, encode
from xelm_nemo.ensemble.placement import Team
from xelm_nemo.errors import CheckpointError, CorpusError
from xelm_nemo.evaluation import passes
from xelm_nemo.evaluation.documents import HeldOutDocument, encode_documents
from xelm_nemo.evaluation.passes import Pass
from xelm_nemo.evaluation.scoring import ModelSource, Scores, run_models

TEXTS = ["ab", "b a bb", "a", "bbbb ab", "ba"]


def encoded(texts=TEXTS, seq_length=100):
    documents = [HeldOutDocument(text) for text in texts]
    return encode_documents(documents, encode=encode, tokenizer=LetterTokenizer(), seq_length=seq_length)


def source(model, fingerprint="1"):
    return ModelSource("expert0", fingerprint, lambda: model)


def never_load():
    raise AssertionError("the model was loaded although its scores are on disk")


def score(model_source, documents, folder, batch_tokens=12, seq_length=100, stride=None):
    scores = Scores(model_source, documents, Pass(seq_length, stride, batch_tokens, "cpu", folder))
    run_models([scores], Team())
    return scores.read()


def test_every_token_after_the_first_is_scored_the_end_included(tmp_path):
    model = BigramModel(0)
    for text, log_p in zip(TEXTS, score(source(model), encoded(), tmp_path), strict=True):
        ids = encode(text)
        expected = [math.log(model.probability(a, b)) for a, b in itertools.pairwise(ids)]
        torch.testing.assert_close(log_p, torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 20, 999])
def test_batches_and_padding_do_not_change_a_score(tmp_path, batch_tokens):
    alone = [score(source(BigramModel(0)), encoded([text]), tmp_path / text)[0] for text in TEXTS]
    together = score(source(BigramModel(0)), encoded(), tmp_path, batch_tokens)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_packs_gets_texts_end_to_end_where_padding_would_be_much(tmp_path):
    seen = []

    def packing(tokens, targets, lengths=None):
        seen.append(tuple(tokens.shape) if lengths is None else lengths)
        assert lengths is None or tokens.shape == targets.shape == (1, sum(lengths))
        return BigramModel(0)(tokens, targets)

    packed = ModelSource("expert0", "1", lambda: packing, packs=True)
    texts = [*TEXTS, "bb", "b", *["aaaaaaa"] * 2]  # of 3, 7, 2, 8, 3, 3, 2, 8 and 8 tokens to score
    together = score(packed, encoded(texts), tmp_path, batch_tokens=24)
    # Three of 8 are full; one of 7 and two of 3 would be padded to 21, then 3, 2 and 2 to 9.
    assert seen == [(3, 8), [7, 3, 3, 3, 2, 2]]
    expected = score(source(BigramModel(0)), encoded(texts), tmp_path)
    for one, other in zip(expected, together, strict=True):
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
    "fingerprint, texts, batch_tokens",
    [("2", TEXTS, 12), ("1", ["ab", "b a bb", "a", "bbbb ab", "bb"], 12), ("1", TEXTS, 20)],
    ids=["weights", "text", "batch size"],
)
def test_scores_of_something_else_are_not_taken(tmp_path, fingerprint, texts, batch_tokens):
    score(source(BigramModel(0)), encoded(), tmp_path)
    again = score(source(BigramModel(1), fingerprint), encoded(texts), tmp_path, batch_tokens)
    expected = score(source(BigramModel(1)), encoded(texts), tmp_path / "fresh", batch_tokens)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_a_model_that_diverged_is_named(tmp_path):
    model = BigramModel(0)
    model.table[1] = math.nan
    with pytest.raises(CheckpointError, match=r"expert0 .* not finite"):
        score(source(model), encoded(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_next_model_is_fetched_while_one_is_scored(tmp_path):
    seen = []

    def source_of(k):
        class Noting(BigramModel):
            def __call__(self, tokens, targets):
                seen.append(f"score {k}")
                return super().__call__(tokens, targets)

        def load():
            seen.append(f"load {k}")
            return Noting(k)

        return ModelSource(f"expert{k}", str(k), load, lambda: seen.append(f"fetch {k}"))

    how = Pass(100, None, 1000, "cpu", tmp_path)
    run_models([Scores(source_of(k), encoded(["ab"]), how) for k in range(3)], Team())
    assert seen == [
        *("load 0", "fetch 1", "score 0"),
        *("load 1", "fetch 2", "score 1"),
        *("load 2", "score 2"),
    ]


def test_a_disk_that_refuses_is_heard_before_all_models_have_run(tmp_path):
    (tmp_path / ".expert1.safetensors.part").mkdir()  # in the way of the file
    loaded = []

    def load(k):
        loaded.append(k)
        time.sleep(0.1 if k == 2 else 0)  # time enough for the disk
        return BigramModel(k)

    how = Pass(100, None, 1000, "cpu", tmp_path)
    sources = [ModelSource(f"expert{k}", str(k), functools.partial(load, k)) for k in range(5)]
    with pytest.raises(OSError, match="expert1"):
        run_models([Scores(one, encoded(["ab"]), how) for one in sources], Team())
    assert len(loaded) < 5 and (tmp_path / "expert0.safetensors").is_file()


def test_a_long_evaluation_says_how_far_it_is(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    score(source(BigramModel(0)), encoded(), tmp_path / "short", batch_tokens=1)
    assert " texts" not in caplog.text
    monkeypatch.setattr(passes, "_SAY_SECONDS", -1)
    score(source(BigramModel(0)), encoded(), tmp_path, batch_tokens=1)
    assert "expert0: 4 of 5 texts" in caplog.text


def test_damaged_scores_are_computed_again(tmp_path, caplog):
    first = score(source(BigramModel(0)), encoded(), tmp_path)
    path = tmp_path / "expert0.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    again = score(source(BigramModel(0)), encoded(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert "expert0 is computed again" in caplog.text
    score(ModelSource("expert0", "1", never_load), encoded(), tmp_path)


def test_long_documents_are_scored_through_windows_every_token_once(tmp_path):
    class Window(BigramModel):
        """A model of more than one token: what it says depends on where the window begins."""

        def __call__(self, tokens, targets):
            assert tokens.shape[1] <= 4
            return super().__call__(tokens, targets) - tokens[:, :1] / 8

    text = "abab abb a"
    document = encoded([text], seq_length=None)[0]
    (log_p,) = score(source(Window(0)), [document], tmp_path, seq_length=4, stride=2)
    ids = encode(text)
    # The windows of 4 inputs: 0-3 score all, then 2-5, 4-7, ... their last two, and 7-10 its last one.
    begins = [0, 0, 0, 0, 2, 2, 4, 4, 6, 6, 7]
    expected = [
        math.log(BigramModel(0).probability(ids[t], ids[t + 1])) - ids[begin] / 8
        for t, begin in enumerate(begins)
    ]
    torch.testing.assert_close(log_p, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    assert (document.num_bytes, document.is_truncated) == (len(text), False)
