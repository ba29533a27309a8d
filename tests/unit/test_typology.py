import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xelm_nemo.clustering import typology, uriel
from xelm_nemo.clustering.clusterer import RandomClusterer, TypologyClusterer
from xelm_nemo.clustering.typology import (
    XELM_LANGUAGES,
    language_distances,
    nearest_donor,
    nearest_donors,
    typology_clusters,
)
from xelm_nemo.errors import ConfigError
from xelm_nemo.stages.languages import write_languages

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/typology_distances_16.json").read_text())

# X-ELM's maps, cluster by cluster in the order of their numbers.
XELM_MAPS = {
    2: ["en es bg ru de el fr ar", "ja ko tr zh hi ur vi sw"],
    4: ["en es bg ru", "ja ko tr zh", "de el fr ar", "hi ur vi sw"],
    8: ["en es", "de el", "ja ko", "hi ur", "bg ru", "fr ar", "tr zh", "vi sw"],
    16: ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "zh", "hi", "sw", "ur", "ja", "ko"],
}


def grouped(clusters):
    return [
        {lang for lang, k in clusters.items() if k == cluster}
        for cluster in range(max(clusters.values()) + 1)
    ]


@pytest.mark.parametrize("num_clusters", XELM_MAPS)
def test_xelms_maps_are_reproduced_with_their_numbers(num_clusters):
    expected = [set(names.split()) for names in XELM_MAPS[num_clusters]]
    assert grouped(typology_clusters(XELM_LANGUAGES, num_clusters)) == expected


def test_xelms_languages_give_the_same_map_in_any_order():
    assert typology_clusters(sorted(XELM_LANGUAGES), 8) == typology_clusters(XELM_LANGUAGES, 8)


def test_the_large_table_agrees_with_the_golden_table_of_xelms_languages():
    assert list(XELM_LANGUAGES) == GOLDEN["langs"]
    assert np.array_equal(language_distances(GOLDEN["langs"]), GOLDEN["matrix"])


def test_distances_are_symmetric_and_zero_on_the_diagonal():
    languages = [*XELM_LANGUAGES, "he", "sv", "pl", "az", "th", "zu"]
    distance = language_distances(languages)
    assert np.array_equal(distance, distance.T)
    assert not distance.diagonal().any()
    assert (distance[~np.eye(len(languages), dtype=bool)] > 0).all()


@pytest.mark.parametrize(
    ("language", "donor", "distance"),
    [("he", "ar", 0.228), ("sv", "en", 0.217), ("pl", "ru", 0.238), ("az", "tr", 0.250)],
)
def test_new_languages_find_xelms_donors(language, donor, distance):
    found, found_distance = nearest_donor(language, XELM_LANGUAGES)
    assert found == donor
    assert found_distance == pytest.approx(distance, abs=5e-4)


def test_a_language_is_not_its_own_donor():
    assert nearest_donor("hi", XELM_LANGUAGES)[0] == "ur"
    with pytest.raises(ConfigError, match="no donor for 'hi'"):
        nearest_donor("hi", ["hi"])


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 4, 7, 17])
def test_any_number_of_clusters_and_languages_works(num_clusters):
    languages = [*sorted(XELM_LANGUAGES), "th"]
    clusters = typology_clusters(languages, num_clusters)
    assert list(dict.fromkeys(clusters[lang] for lang in languages)) == list(range(num_clusters))


def test_average_link_keeps_close_languages_together():
    clusters = typology_clusters([*XELM_LANGUAGES, "th"], 5)
    assert clusters["th"] == clusters["vi"] and clusters["hi"] == clusters["ur"]


def test_eight_languages_are_halved_into_equal_clusters():
    languages = ["th", "vi", "he", "ar", "sv", "en", "pl", "ru"]
    assert grouped(typology_clusters(languages, 4)) == [
        {"th", "vi"},
        {"sv", "en"},
        {"he", "ar"},
        {"pl", "ru"},
    ]
    assert set(Counter(typology_clusters(languages, 2).values()).values()) == {4}


@pytest.mark.parametrize(
    ("languages", "num_clusters", "message"),
    [
        (["en", "xx", "yy"], 2, r"\['xx', 'yy'\].*typology_distances\.json.*clustering\.method=tfidf"),
        (["en", "fr", "en"], 2, r"\['en'\] more than once"),
        (["en", "fr"], 3, r"clustering\.num_clusters=3 cannot divide 2 languages"),
        (["en", "fr"], 0, r"clustering\.num_clusters=0"),
        ([], 1, "cannot divide 0 languages"),
    ],
)
def test_languages_that_cannot_be_clustered_are_named(languages, num_clusters, message):
    with pytest.raises(ConfigError, match=message):
        typology_clusters(languages, num_clusters)


XGLM_LANGUAGES = "en ru zh de es fr ja it pt el ko fi id tr ar vi th bg ca hi et bn ta ur sw te eu my ht qu"


def test_the_table_covers_xglms_languages_and_those_that_come_later():
    languages = XGLM_LANGUAGES.split()
    assert len(languages) == 30
    assert len(set(typology_clusters([*languages, "he", "sv", "pl", "az"], 9).values())) == 9


def test_every_other_language_of_the_table_has_a_donor():
    donors = nearest_donors(XELM_LANGUAGES)
    assert len(donors) == 68 - 16 and not set(donors) & set(XELM_LANGUAGES)
    assert (donors["he"][0], donors["az"][0], donors["th"][0]) == ("ar", "tr", "vi")


@pytest.fixture
def lang2vec(tmp_path, monkeypatch):
    """A stand-in of the package: 103 columns of syntax and one of sounds, languages by their long codes."""
    rng = np.random.default_rng(0)
    short = {lang: f"{lang}x" for lang in [*XELM_LANGUAGES, "cy", "gd"]}
    data = rng.integers(-1, 2, (len(short), 6, 1)).astype(float)
    data[:16, 2] = 1  # says nothing about X-ELM's languages
    data[:, 5] = rng.random((len(short), 1))
    data[-1] = data[-2]
    feats = np.array(["S_A", "S_B", "S_C", "S_D", "S_E", "P_F"])
    folder = tmp_path / "lang2vec/data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('its code is not imported')")
    np.savez(folder / "feature_averages.npz", feats=feats, data=data, langs=np.array(list(short.values())))
    (folder / "letter_codes.json").write_text(json.dumps(short))
    monkeypatch.syspath_prepend(tmp_path)
    return data[:, [0, 1, 3, 4], 0]


def test_other_languages_come_from_lang2vec(lang2vec):
    distance = language_distances(["en", "cy", "gd"])
    x, y = (np.where(lang2vec[i] < 0, 0, lang2vec[i]) for i in (0, 16))
    assert distance[0, 1] == pytest.approx(1 - x @ y / np.sqrt((x @ x) * (y @ y)))
    assert distance[1, 2] == pytest.approx(0) and not distance.diagonal().any()
    assert nearest_donor("gd", ["en", "cy"])[0] == "cy"


@pytest.mark.skipif(uriel.find_spec("lang2vec") is None, reason="pip install -e .[typology]")
def test_shipped_table_is_what_lang2vecs_data_give():
    languages = list(typology._table()[0])
    found = typology._with_lang2vec(languages, unknown=[])
    assert found == pytest.approx(language_distances(languages), abs=1e-6)
    assert nearest_donor("gd", XELM_LANGUAGES)[1] > 0  # which the table does not have


def test_a_language_that_nobody_knows_is_named_with_what_would_help(monkeypatch, request):
    with monkeypatch.context() as patch:
        patch.setattr(uriel, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"\['xx'\].*pip install lang2vec, leave them out"):
            language_distances(["en", "xx"])
    request.getfixturevalue("lang2vec")
    with pytest.raises(ConfigError, match=r"\['xx'\].*distances\.json; leave them out"):
        language_distances(["en", "xx", "cy"])


def test_a_clusterer_by_language_comes_with_its_tree_and_its_donors(tmp_path):
    write_languages(tmp_path, TypologyClusterer(8, typology_clusters(XELM_LANGUAGES, 8)))
    text = (tmp_path / "languages.md").read_text()
    assert "- 7: vi sw\n" in text
    assert "| he | ar | 0.228 | 5 |" in text
    assert (tmp_path / "languages.png").read_bytes().startswith(b"\x89PNG")


def test_other_clusterers_have_no_tree(tmp_path):
    write_languages(tmp_path, RandomClusterer(2, seed=0))
    assert not list(tmp_path.iterdir())
