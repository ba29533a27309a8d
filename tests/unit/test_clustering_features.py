from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.clustering.features import TextFeatures
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.files import write_json

TEXTS = [
    "Everyone has the right to life, liberty and security of person.",
    "No one shall be held in slavery or servitude in 1948 or 2nd of May.",
    "Toute personne a droit à la liberté de pensée, de conscience et de religion.",
    "人人有权享有生命、自由和人身安全。",
    "すべて人は、思想、良心及び宗教の自由に対する権利を有する。",
    "Каждый человек имеет право на жизнь, на свободу",
    "Everyone has the right to freedom of thought",
]
UNSEEN = ["the right to nothing", "", "12 34", "人身安全", "Жизнь и свобода", "zzzz"]


def fit(texts=TEXTS, **settings):
    return TextFeatures.fit(texts, ClusteringConfig(**{"svd_dim": 4, **settings}))


def test_words_match_upstreams_pipeline():
    def upstream_tokens(text):
        tokens = TfidfVectorizer().build_tokenizer()(text)
        return ["#NUMBER" if token[0].isdigit() else token for token in tokens]

    upstream = make_pipeline(
        TfidfVectorizer(tokenizer=upstream_tokens, stop_words=["#NUMBER"], token_pattern=None),
        TruncatedSVD(4, random_state=1234),
        Normalizer(),
    )
    with pytest.warns(UserWarning, match="stop_words"):
        expected = upstream.fit(TEXTS).transform(TEXTS + UNSEEN)
    # Singular vectors of equal strength may be any in their plane: theirs are taken.
    ours = replace(fit(), components=np.ascontiguousarray(upstream[1].components_))
    assert np.array_equal(ours.transform(TEXTS + UNSEEN), expected.astype(np.float32))


@pytest.mark.parametrize(
    "settings",
    [
        {"analyzer": "word"},
        {"analyzer": "word", "ngram_range": [1, 2], "max_features": 20},
        {"analyzer": "char_wb", "ngram_range": [1, 3]},
        {"stop_words": ["en", "fr"], "ngram_range": [1, 2]},
    ],
)
def test_loaded_features_give_the_same_bits_as_fitted_ones(tmp_path, settings):
    fitted = fit(**settings)
    fitted.save(tmp_path)
    loaded = TextFeatures.load(tmp_path)
    assert loaded.settings == fitted.settings
    assert np.array_equal(loaded.transform(TEXTS + UNSEEN), fitted.transform(TEXTS + UNSEEN))
    assert loaded.top_terms(np.ones(4), 5) == fitted.top_terms(np.ones(4), 5)


def test_terms_with_newlines_and_control_characters_survive_saving(tmp_path):
    texts = ["a\nb c\x1cd \u2028e", "f\u3000g\r\nh \x85i", "j k l"]
    fitted = fit(texts, analyzer="char_wb", ngram_range=[1, 4])
    fitted.save(tmp_path)
    assert TextFeatures.load(tmp_path).terms == fitted.terms


def test_rows_are_unit_vectors_and_unknown_text_is_zero():
    rows = fit().transform([*TEXTS, "zzzz", ""])
    assert rows.dtype == np.float32 and rows.shape == (len(TEXTS) + 2, 4)
    assert np.linalg.norm(rows[: len(TEXTS)], axis=1) == pytest.approx(1, abs=1e-6)
    assert not rows[len(TEXTS) :].any()
    assert fit().transform([]).shape == (0, 4)


def test_the_same_seed_gives_the_same_bits():
    assert np.array_equal(fit().components, fit().components)


@pytest.mark.parametrize(
    ("texts", "dim"),
    [(TEXTS, 6), (TEXTS[:2], 1), (TEXTS[:1], 1), (["aa bb", "bb", "aa", "aa aa"], 1)],
)
def test_dimensions_are_cut_to_what_the_data_allow(texts, dim):
    features = fit(texts, svd_dim=100)
    assert len(features.components) == dim
    assert np.isfinite(features.transform(texts)).all()


def test_characters_tell_scripts_without_spaces_apart_where_words_see_nothing():
    seen = "人人有权享有生命自由和人身安全", "อิสรภาพและความเสมอภาค"
    texts = [*seen, "人人有权", "อิสรภาพ"]
    by_word, by_char = (
        fit(list(seen), analyzer=analyzer, ngram_range=[1, n]).transform(texts)
        for analyzer, n in (("word", 1), ("char_wb", 3))
    )
    assert not by_word[2].any()
    assert by_char[2].any() and by_char[3].any()


def test_top_terms_are_the_heaviest_in_the_direction_of_a_vector():
    features = fit(["cat cat dog", "cat dog", "sun moon", "moon sun sun"], svd_dim=2)
    assert set(features.top_terms(features.transform(["cat dog"])[0], 2)) == {"cat", "dog"}
    assert set(features.top_terms(features.transform(["sun"])[0], 2)) == {"sun", "moon"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"analyzer": "char"}, r"clustering\.analyzer='char'.*char_wb"),
        ({"ngram_range": [2, 1]}, r"clustering\.ngram_range=\[2, 1\]"),
        ({"ngram_range": [1]}, r"clustering\.ngram_range=\[1\]"),
        ({"max_features": 1}, r"clustering\.max_features=1"),
        ({"svd_dim": 0}, r"clustering\.svd_dim=0"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        fit(**settings)


@pytest.mark.parametrize(("texts", "terms"), [(["1948", "a b c"], 0), (["word", "word 5"], 1)])
def test_texts_with_too_few_terms_are_an_error_that_says_what_to_try(texts, terms):
    with pytest.raises(ConfigError, match=rf"finds {terms} terms in 2 documents.*char_wb"):
        fit(texts)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    fit().save(tmp_path)
    write_json(tmp_path / "vocabulary.json", ["just", "two"])
    with pytest.raises(ArtifactError, match="2 terms"):
        TextFeatures.load(tmp_path)


@pytest.mark.parametrize("name", ["features.json", "vocabulary.json", "features.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    fit().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        TextFeatures.load(tmp_path)
