"""Weights while texts grow, against those of each whole text."""

import pytest
import torch

from tests.helpers.bigrams import LetterTokenizer, encode, letter_clusterer
from tests.helpers.prefix_definition import prefix_squared_distances
from xelm_nemo.generation import routing
from xelm_nemo.generation.routing import PrefixRouting
from xelm_nemo.router.weights import router_log_weights

CLUSTERER = letter_clusterer([[1, 0], [0, 1], [0.6, 0.8]])
HOW = {"temperature": 0.5, "rule": "paper", "top_k": 2}


def slow_log_weights(ids, first):
    distance = prefix_squared_distances(ids, LetterTokenizer(), CLUSTERER)
    return router_log_weights(distance, **HOW)[first:]


def assert_right(router, ids, first):
    torch.testing.assert_close(router.log_weights(ids, first), slow_log_weights(ids, first))


@pytest.fixture
def router():
    return PrefixRouting(CLUSTERER, LetterTokenizer(), **HOW)


def test_texts_of_a_batch_grow_side_by_side(router):
    texts = [encode("ab ab b"), encode("b"), encode("aab a b a a b")]
    for ids in texts:
        assert_right(router, ids[:2], 0)
    for length in range(3, max(map(len, texts)) + 1):
        for ids in texts:
            if length <= len(ids):
                assert_right(router, ids[:length], length - 1)


def test_several_tokens_at_once_and_texts_seen_never_before_are_right_too(router):
    ids = encode("ab ba bb ba")
    for first in (0, 1, 4, len(ids) - 1):
        assert_right(router, ids, first)
    assert_right(router, ids[:1], 0)


def test_beams_that_part_from_one_text_are_right_each(router):
    begun = encode("ab")[:-1]
    assert_right(router, begun, 0)
    for token in (1, 2, 3):
        assert_right(router, [*begun, token], len(begun))


def test_texts_that_are_no_longer_read_on_are_forgotten(router, monkeypatch):
    monkeypatch.setattr(routing, "_MOST_STREAMS", 2)
    texts = [encode(text)[:-1] for text in ("aaa", "bbb", "a b")]
    for length in (2, 3, 4):
        for ids in texts:
            assert_right(router, ids[:length], length - 1)
    assert len(router._streams) == 2
