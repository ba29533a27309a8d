import pytest

from xelm_nemo.ensemble.batches import batches

LENGTHS = [3, 9, 1, 4, 4, 12]


@pytest.mark.parametrize("batch_tokens", [1, 5, 12, 100])
def test_batches_hold_every_text_once_within_the_budget(batch_tokens):
    found = list(batches(LENGTHS, batch_tokens))
    assert sorted(n for batch in found for n in batch) == [0, 1, 2, 3, 4, 5]
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(LENGTHS[n] for n in batch) <= batch_tokens


def test_texts_of_like_length_stand_together():
    lengths = [[LENGTHS[n] for n in batch] for batch in batches(LENGTHS, 12)]
    assert lengths == [[12], [9], [4, 4, 3], [1]]


def test_batches_hold_as_many_tokens_and_texts_as_they_may():
    lengths = [3, 9, 2, 8, 30]
    assert list(batches(lengths, 20, None)) == [[4], [1, 3], [0, 2]]
    assert list(batches(lengths, 20, 1)) == [[4], [1], [3], [0], [2]]


@pytest.mark.parametrize("batch_tokens", [1, 5, 12, 100])
def test_without_padding_a_batch_is_as_full_as_the_next_text_allows(batch_tokens):
    found = list(batches(LENGTHS, batch_tokens, padded=False))
    order = [n for batch in found for n in batch]
    assert [LENGTHS[n] for n in order] == sorted(LENGTHS, reverse=True) and len(set(order)) == len(LENGTHS)
    for batch, after in zip(found, [*found[1:], []], strict=True):
        filled = sum(LENGTHS[n] for n in batch)
        assert len(batch) == 1 or filled <= batch_tokens
        assert not after or filled + LENGTHS[after[0]] > batch_tokens


def test_nothing_has_no_batches():
    assert list(batches([], 20)) == []
    assert list(batches([], 20, padded=False)) == []
