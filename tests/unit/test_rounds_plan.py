"""Who begins from whom: down the tree of languages, and beside a finished set."""

import pytest

from xelm_nemo.clustering.typology import XELM_LANGUAGES, typology_clusters
from xelm_nemo.errors import ConfigError
from xelm_nemo.rounds.plan import (
    PlannedExpert,
    beside_a_set,
    down_the_tree,
    from_seed_model,
    with_ancestors,
)


def levels(*numbers):
    return [typology_clusters(XELM_LANGUAGES, number) for number in numbers]


def test_without_rounds_every_expert_begins_from_the_seed_model():
    assert from_seed_model(2) == [[PlannedExpert(0, 0, (0,)), PlannedExpert(0, 1, (1,))]]


def test_children_share_their_parents_languages():
    cluster_of = levels(4, 8)
    rounds = down_the_tree(cluster_of)
    assert [expert.parent for expert in rounds[0]] == [None] * 4
    for expert in rounds[1]:
        members = {lang for lang, cluster in cluster_of[1].items() if cluster == expert.cluster}
        assert {cluster_of[0][lang] for lang in members} == {expert.parent}
    assert sorted(expert.parent for expert in rounds[1]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_xelms_tree_from_the_root_to_a_language():
    """en and es, then with bg and ru, then with de, el, fr and ar, then all: X-ELM's maps."""
    rounds = down_the_tree(levels(1, 2, 4, 8, 16))
    clusters = levels(16)[0]
    (expert,) = [expert for expert in rounds[4] if expert.cluster == clusters["es"]]
    line = []
    for number in (3, 2, 1, 0):
        (expert,) = [other for other in rounds[number] if other.cluster == expert.parent]
        line.append({lang for lang, cluster in clusters.items() if cluster in expert.reads})
    assert line[0] == {"en", "es"}
    assert line[1] == {"en", "es", "bg", "ru"}
    assert line[2] == {"en", "es", "bg", "ru", "de", "el", "fr", "ar"}
    assert line[3] == set(XELM_LANGUAGES)


def test_every_round_reads_every_cluster_once():
    for experts in down_the_tree(levels(1, 4, 16)):
        assert sorted(cluster for expert in experts for cluster in expert.reads) == list(range(16))
        assert [expert.cluster for expert in experts] == list(range(len(experts)))


def test_other_numbers_of_clusters_are_a_tree_too():
    languages = ["en", "fr", "es", "de", "ru", "bg"]
    cut = [typology_clusters(languages, number) for number in (2, 3, 6)]
    assert [len(experts) for experts in down_the_tree(cut)] == [2, 3, 6]


def test_levels_that_cut_across_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"rounds\.experts=\[2, 2\] is no tree: a c .*round 1"):
        down_the_tree([{"a": 0, "b": 0, "c": 1, "d": 1}, {"a": 0, "b": 1, "c": 0, "d": 1}])


def test_new_expert_begins_from_its_donor_and_reads_its_documents_too():
    assert beside_a_set(16, [8, 0]) == [[PlannedExpert(0, 16, (16, 8), 8), PlannedExpert(0, 17, (17, 0), 0)]]


def test_two_new_experts_may_have_one_donor():
    assert [expert.parent for expert in beside_a_set(2, [1, 1])[0]] == [1, 1]


def test_chosen_experts_need_their_ancestors_and_no_others():
    rounds = down_the_tree(levels(1, 2, 4))
    chosen = with_ancestors(rounds, [2])
    assert [[expert.cluster for expert in experts] for experts in chosen] == [[0], [rounds[2][2].parent], [2]]
