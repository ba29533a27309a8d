"""A clusterer that learns further languages keeps what it knew."""

import pytest

from tests.helpers.exported import fit
from xelm_nemo.clustering.clusterer import RandomClusterer, TypologyClusterer
from xelm_nemo.clustering.newcomers import with_newcomers
from xelm_nemo.corpus.documents import Document
from xelm_nemo.errors import ConfigError, CorpusError


def document(text, lang, number=0):
    return Document(sp_id=f"train/00000/a.jsonl|{number}", text=text, lang=lang)


def test_language_gets_a_cluster_of_its_own():
    old = TypologyClusterer(2, {"en": 0, "fr": 0, "ja": 1})
    new = with_newcomers(old, ["sv", "ko"], [])
    assert new.num_clusters == 4
    assert new.assign([document("", lang) for lang in ("en", "fr", "ja", "sv", "ko")]) == [0, 0, 1, 2, 3]


def test_language_that_the_set_knows_is_no_newcomer():
    with pytest.raises(ConfigError, match=r"has \['en'\], which the set has an expert for"):
        with_newcomers(TypologyClusterer(1, {"en": 0}), ["en"], [])


def test_texts_like_the_newcomers_go_to_its_centroid_and_the_others_where_they_went():
    old = fit(num_clusters=2)
    terms = old.features.terms
    mixed = [document(f"{terms[0]} {terms[-1]}", "xx", n) for n in range(3)] + [document("elsewhere", "yy")]
    new = with_newcomers(old, ["xx"], mixed)
    assert (new.centroids[:2] == old.centroids).all() and new.features is old.features
    vectors = old.features.transform([each.text for each in mixed[:3]])
    assert new.centroids[2] == pytest.approx(vectors.mean(0))
    assert new.assign(mixed[:3]) == [2, 2, 2]


def test_documents_without_a_known_term_do_not_pull_the_centroid_to_zero():
    old = fit(num_clusters=2)
    known = document(" ".join(old.features.terms[:2]), "xx")
    unknown = [document("שלום עולם", "xx", n) for n in range(1, 10)]
    alone, among = (with_newcomers(old, ["xx"], texts) for texts in ([known], [known, *unknown]))
    assert alone.centroids[2].any()
    assert among.centroids[2] == pytest.approx(alone.centroids[2])


@pytest.mark.parametrize("known, unknown", [(0, 3), (1, 10)])
def test_newcomer_whose_words_are_not_known_is_named(known, unknown):
    old = fit(num_clusters=2)
    texts = [" ".join(old.features.terms[:2])] * known + ["שלום עולם יום טוב"] * unknown
    documents = [document(text, "he", n) for n, text in enumerate(texts)]
    said = f"has 'he', and {known} of its {known + unknown} training documents have a term that"
    with pytest.raises(CorpusError, match=said):
        with_newcomers(old, ["he"], documents)


def test_newcomer_without_a_document_is_named():
    with pytest.raises(CorpusError, match="has 'xx', and no training document says that it is of that"):
        with_newcomers(fit(), ["xx"], [document("some text", "en")])


def test_clusterer_without_languages_or_texts_takes_no_newcomer():
    with pytest.raises(ConfigError, match="of kind 'random', in which a language has no place"):
        with_newcomers(RandomClusterer(2, 1), ["sv"], [])
