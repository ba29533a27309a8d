import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from xelm_nemo.clustering.typology import XELM_LANGUAGES, language_distances, nearest_donor, typology_clusters
from xelm_nemo.errors import ConfigError

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
