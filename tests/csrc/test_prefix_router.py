"""What the classes behind `Router` refuse, and what they say of terms; distances are held to elsewhere."""

from itertools import pairwise

import numpy as np
import pytest

from xelm_nemo._csrc import AnalyzerSettings, PrefixRouter, PrefixStream, Tfidf, TokenPieces

WORDS = AnalyzerSettings(characters=False, drops_numbers=True, shortest=1, longest=1)
PIECES = TokenPieces(
    [b"", b"on", b"e", b" two", b" ", b"\xce\xa3", b"\xe2\x82"], [True] + 6 * [False], metas="kept"
)


def router(num_rows=2, num_clusters=2):
    tfidf = Tfidf(WORDS, [], ["one", "two"], np.ones(2))
    arrays = {
        "components": np.eye(2)[:num_rows],
        "products": np.eye(2)[:num_rows],
        "squares": np.ones(num_clusters),
    }
    return PrefixRouter(tfidf, **arrays)


def ids(*numbers):
    return np.array(numbers, np.int32)


def test_a_word_is_open_until_something_ends_it():
    starts, settled, open_starts, opened = router().terms(PIECES, ids(0, 1, 2, 3, 4, 0), [6], num_threads=1)
    assert [settled[a:b].tolist() for a, b in pairwise(starts)] == [[], [], [], [], [0], [1]]
    assert [opened[a:b].tolist() for a, b in pairwise(open_starts)] == [[], [], [], [0], [1], []]


def test_documents_lie_one_after_another_whatever_the_threads():
    alone = [
        router().terms(PIECES, ids(*each), [len(each)], num_threads=1) for each in ([1, 2, 3], [3, 4, 4])
    ]
    for num_threads in (1, 3):
        together = router().terms(PIECES, ids(1, 2, 3, 3, 4, 4), [3, 3, 6], num_threads=num_threads)
        assert together[1].tolist() == [*alone[0][1], *alone[1][1]]
        assert together[3].tolist() == [*alone[0][3], *alone[1][3]]
        assert len(together[0]) == len(together[2]) == 7


def test_a_character_in_parts_is_a_replacement_character_until_it_is_whole():
    whole = TokenPieces(
        [b"a", b"\xf0\x9f", b"\x98", b"\x80", b"\xe2\x82", b"\xff"], 6 * [False], metas="kept"
    )
    sign = "\ufffd"
    assert whole.texts(ids(0, 1, 2, 3, 1, 0)) == [
        "a",
        "a" + sign,
        "a" + sign,
        "a😀",
        "a😀" + sign,
        f"a😀{sign}a",
    ]
    for order in ([4, 4, 5, 2, 0], [1, 1, 3, 5, 1, 2, 3], [5, 5, 2, 3, 0, 4]):
        pieces = [[b"a", b"\xf0\x9f", b"\x98", b"\x80", b"\xe2\x82", b"\xff"][i] for i in order]
        expected = [b"".join(pieces[: j + 1]).decode("utf-8", "replace") for j in range(len(pieces))]
        assert whole.texts(ids(*order)) == expected


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"ids\[1\]=7 is no token; there are 7"):
        router().distances(PIECES, ids(0, 7), [2], num_threads=1)
    with pytest.raises(ValueError, match=r"ids\[0\]=-1 is no token"):
        PrefixStream(router()).append(PIECES, ids(-1))
    with pytest.raises(ValueError, match="ends do not ascend"):
        router().distances(PIECES, ids(0, 1), [2, 1], num_threads=1)
    with pytest.raises(ValueError, match="ends do not end where ids do"):
        router().terms(PIECES, ids(0, 1), [1], num_threads=1)
    with pytest.raises(ValueError, match="for F=2 terms"):
        router(num_rows=1)
    with pytest.raises(ValueError, match="for F=2 terms"):
        router(num_clusters=3)
    with pytest.raises(ValueError, match="metas='lost' is not 'kept'"):
        TokenPieces([], [], metas="lost")
    with pytest.raises(ValueError, match="1 pieces with 0 of is_special"):
        TokenPieces([b"a"], [], metas="kept")
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        PrefixStream(router()).replace(["one", 2])


def test_a_character_in_parts_settles_when_it_is_whole_and_what_is_before_it_but_once():
    letters = AnalyzerSettings(characters=True, drops_numbers=False, shortest=1, longest=1)
    arrays = {"components": np.eye(2), "products": np.eye(2), "squares": np.ones(2)}
    parts = TokenPieces([b"a", b"\xe2\x82", b"\xac"], 3 * [False], metas="kept")
    euros = PrefixRouter(Tfidf(letters, [], ["a", "€"], np.ones(2)), **arrays)
    starts, settled, *_ = euros.terms(parts, ids(0, 1, 2, 0, 0), [5], num_threads=1)
    assert [settled[a:b].tolist() for a, b in pairwise(starts)] == [[], [0], [], [1], [0]]
