import pytest

from xelm_nemo.evaluation.windows import Window, windows


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
