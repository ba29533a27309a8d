import pytest

from xelm_nemo.evaluation.windows import Window, batches, windows


def of_length(*lengths):
    return [Window(n, 0, length, 0) for n, length in enumerate(lengths)]


@pytest.mark.parametrize("num_tokens", [1, 7, 8])
def test_a_document_that_fits_is_one_window(num_tokens):
    assert windows(3, num_tokens, seq_length=8, stride=2) == [Window(3, 0, num_tokens, 0)]


@pytest.mark.parametrize("num_tokens", range(1, 40))
@pytest.mark.parametrize("seq_length, stride", [(8, 8), (8, 3), (8, 1), (1, 1)])
def test_every_token_is_scored_once_with_the_context_promised(num_tokens, seq_length, stride):
    found = windows(0, num_tokens, seq_length=seq_length, stride=stride)
    scored = [t for window in found for t in range(window.scored_from, window.end)]
    assert scored == list(range(num_tokens))
    assert all(window.length <= seq_length for window in found)
    for window in found[1:]:
        assert window.scored_from - window.start >= seq_length - stride


@pytest.mark.parametrize("batch_tokens", [1, 5, 12, 100])
def test_batches_hold_every_window_once_within_the_budget(batch_tokens):
    every = of_length(3, 9, 1, 4, 4, 12)
    found = list(batches(every, batch_tokens))
    assert sorted(w.document for batch in found for w in batch) == [0, 1, 2, 3, 4, 5]
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(w.length for w in batch) <= batch_tokens


def test_windows_of_like_length_stand_together():
    lengths = [[window.length for window in batch] for batch in batches(of_length(3, 9, 1, 4, 4, 12), 12)]
    assert lengths == [[12], [9], [4, 4, 3], [1]]
