import pytest

from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.clustering.features import TextFeatures
from xelm_nemo.clustering.stop_words import stop_words
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError


def test_stop_words_of_several_languages_come_once_each_and_in_order():
    words = stop_words(["en", "de"])
    assert {"the", "und"} <= set(words)
    assert list(words) == sorted(set(words))
    assert set(stop_words(["en"])) < set(words)


def test_without_languages_there_are_no_stop_words():
    assert stop_words([]) == ()


def test_each_language_of_xelm_but_swahili_has_stop_words_in_its_configuration():
    languages = compose(["clustering=tfidf_xelm"]).clustering.stop_words
    assert len(languages) == 15 and "sw" not in languages
    assert all(stop_words([language]) for language in languages)


def test_a_language_without_a_list_is_named():
    with pytest.raises(ConfigError, match=r"clustering\.stop_words=\['en', 'xx'\] has \['xx'\].* en .*"):
        stop_words(["en", "xx"])


def test_stop_words_are_no_terms_of_the_features():
    texts = ["the cat and the dog", "the dog and the sun", "a cat in the sun"]
    config = ClusteringConfig(svd_dim=2, stop_words=["en"])
    assert TextFeatures.fit(texts, config).terms == ["cat", "dog", "sun"]
