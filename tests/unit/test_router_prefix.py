import numpy as np
import pytest

from tests.helpers.bigrams import (
    EOS,
    LanguageClusterer,
    LetterClusterer,
    LetterShares,
    LetterTokenizer,
    encode,
)
from xelm_nemo.errors import ConfigError
from xelm_nemo.router.prefix import prefix_squared_distances

CENTROIDS = np.array([[1, 0], [0, 2], [0.6, 0.8]], dtype=np.float32)


@pytest.fixture
def clusterer():
    return LetterClusterer(LetterShares(), CENTROIDS)


def test_row_j_is_the_distance_of_the_text_before_token_j(clusterer):
    distance = prefix_squared_distances(encode("ab"), LetterTokenizer(), clusterer)
    half = 0.5**0.5
    prefixes = [(0, 0), (0, 0), (1, 0), (half, half)]  # "", "</s>", "</s>a", "</s>ab"; "</s>ab</s>" is no row
    expected = [[((np.array(p) - c) ** 2).sum() for c in CENTROIDS] for p in prefixes]
    np.testing.assert_allclose(distance.numpy(), expected, atol=1e-6)


def test_the_empty_prefix_is_as_far_as_the_centroids_are_long(clusterer):
    distance = prefix_squared_distances([EOS], LetterTokenizer(), clusterer)
    np.testing.assert_allclose(distance.numpy(), [[1, 4, 1]], atol=1e-6)


def test_a_document_is_vectorised_in_one_batch_and_equal_prefixes_once(clusterer):
    prefix_squared_distances([EOS, EOS, 1, EOS, 2], LetterTokenizer(), clusterer)
    assert clusterer.features.calls == [["", "a"]]


def test_a_clusterer_without_text_features_is_refused_with_the_rules_that_need_them():
    with pytest.raises(ConfigError, match=r"clustering\.method=tfidf.*'bayes'"):
        prefix_squared_distances([EOS], LetterTokenizer(), LanguageClusterer(2))
