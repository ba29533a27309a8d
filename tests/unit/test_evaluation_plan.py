import pytest

from xelm_nemo.config.compose import compose
from xelm_nemo.ensemble.rules import Ensemble
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.documents import HeldOutDocument
from xelm_nemo.evaluation.plan import (
    check_inputs,
    languages_without_expert,
    plan_ensembles,
    select_documents,
    with_expert,
)
from xelm_nemo.evaluation.scoring import ModelSource

DOCUMENTS = [HeldOutDocument(f"text {n}", "en") for n in range(10)]
EXPERTS = [ModelSource(f"expert{k}", "", lambda: None) for k in range(2)]


def plan(num_experts=4, can_route=True, has_language_expert=True, **settings):
    config = EvaluationConfig(**settings)
    return plan_ensembles(
        config, num_experts=num_experts, can_route=can_route, has_language_expert=has_language_expert
    )


def names(ensembles):
    return [ensemble.name for ensemble in ensembles]


def test_a_text_clusterer_is_measured_with_all_experts_each_top_k_and_by_language():
    assert plan(top_k=[2, None, 1]) == [
        Ensemble("ensemble", "clustering"),
        Ensemble("ensemble top-1", "clustering", 1),
        Ensemble("ensemble top-2", "clustering", 2),
        Ensemble("top-1 by language", "top1_language"),
    ]


def test_the_demos_report_has_rows_of_all_experts_and_of_one_and_two_a_token():
    config = compose(["+experiment=udhr"])
    assert config.clustering.method == "tfidf" and "evaluate" in config.finish_with
    rows = plan_ensembles(
        config.evaluation,
        num_experts=config.clustering.num_clusters,
        can_route=True,
        has_language_expert=True,
    )
    assert names(rows) == ["ensemble", "ensemble top-1", "ensemble top-2", "top-1 by language"]


def test_top_k_of_every_expert_is_not_measured_twice():
    assert names(plan(num_experts=2, has_language_expert=False)) == ["ensemble", "ensemble top-1"]


def test_all_experts_are_mixed_only_where_asked_for():
    assert names(plan(rules=["clustering"], top_k=[1])) == ["ensemble top-1"]


def test_each_temperature_is_measured_where_it_changes_a_weight():
    found = plan(rules=["clustering", "bayes"], top_k=[None, 1, 2], temperatures=[0.5, 2])
    assert names(found) == [
        *("ensemble", "ensemble top-1", "ensemble top-2"),
        *("ensemble, T=0.5", "ensemble top-2, T=0.5", "ensemble, T=2", "ensemble top-2, T=2"),
        *("bayes", "bayes top-1", "bayes top-2"),
    ]
    assert found[3] == Ensemble("ensemble, T=0.5", "clustering", None, 0.5)


def test_top_1_depends_on_the_temperature_where_scores_count_too():
    found = plan(rules=["product_of_experts"], top_k=[1], temperatures=[2])
    assert names(found) == ["product of experts top-1", "product of experts top-1, T=2"]


def test_languages_lead_where_texts_cannot_be_placed():
    assert names(plan(can_route=False)) == ["top-1 by language"]


def test_weights_are_uniform_where_nothing_is_known():
    assert names(plan(can_route=False, has_language_expert=False)) == ["uniform"]


def test_the_first_rule_asked_for_leads():
    assert names(plan(rules=["bayes", "clustering"], top_k=[None])) == ["bayes", "ensemble"]


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"rules": ["vote"]}, r"evaluation.rules=\['vote'\]"),
        ({"rules": []}, r"evaluation.rules=\[\]"),
        ({"rules": ["product_of_experts"], "can_route": False}, "clustering.method=tfidf"),
        ({"top_k": [0, 1]}, r"evaluation.top_k=\[0, 1\]"),
        ({"top_k": []}, r"evaluation.top_k=\[\]"),
        ({"temperatures": [0.0]}, r"evaluation.temperatures=\[0.0\]"),
        ({"subsets": []}, r"evaluation.subsets=\[\]"),
        ({"subsets": ["a", "b", "a"]}, r"evaluation.subsets=\['a', 'b', 'a'\] has a subset twice"),
    ],
)
def test_rules_that_cannot_work_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        plan(**settings)


def test_max_docs_takes_documents_from_everywhere():
    assert [document.text for document in select_documents(DOCUMENTS, 3)] == ["text 0", "text 3", "text 6"]


def test_max_docs_past_the_end_takes_all():
    assert select_documents(DOCUMENTS, 11) == DOCUMENTS


def test_an_empty_split_is_refused():
    with pytest.raises(CorpusError, match=r"corpus\.test_split"):
        select_documents([], None)


def test_max_docs_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.max_docs=0"):
        select_documents(DOCUMENTS, 0)


def test_documents_of_other_clusters_are_left_out():
    documents = [HeldOutDocument(f"text {n}", "en", n % 3) for n in range(10)]
    chosen = select_documents(documents, 4, clusters=[0, 2])
    assert [document.text for document in chosen] == ["text 0", "text 2", "text 5", "text 8"]


def test_clusters_without_a_document_are_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.clusters=\[7\]"):
        select_documents(DOCUMENTS, None, clusters=[7])


@pytest.mark.parametrize("num_clusters", [1, 3])
def test_experts_that_are_not_the_clusterers_are_counted(num_clusters):
    with pytest.raises(ConfigError, match=rf"clustering.num_clusters={num_clusters} .* 2 trained experts"):
        check_inputs(DOCUMENTS, EXPERTS, num_clusters, plan(), {"en": 0})


def test_a_set_without_any_expert_is_refused():
    with pytest.raises(ConfigError, match="the expert set is empty"):
        check_inputs(DOCUMENTS, [None, None], 2, plan(), {"en": 0})


def test_a_language_whose_expert_is_missing_has_none():
    assert with_expert({"en": 0, "de": 1}, [EXPERTS[0], None]) == {"en": 0}


def test_a_language_without_an_expert_is_named():
    with pytest.raises(ConfigError, match=r"lang=\['en'\]"):
        check_inputs(DOCUMENTS, EXPERTS, 2, plan(), {"de": 0})


def test_a_language_of_an_expert_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"\{'de': 2\}"):
        check_inputs(DOCUMENTS, EXPERTS, 2, plan(), {"en": 0, "de": 2})


def test_a_document_without_a_language_is_said_to_be_why():
    with pytest.raises(ConfigError, match=r"top1_language.*no language; set corpus\.lang_key"):
        check_inputs([*DOCUMENTS, HeldOutDocument("text")], EXPERTS, 2, plan(), {"en": 0})


def test_languages_do_not_matter_where_no_rule_asks_for_them():
    check_inputs([HeldOutDocument("text")], EXPERTS, 2, plan(has_language_expert=False), None)


def test_languages_without_an_expert_are_found():
    documents = [*DOCUMENTS, HeldOutDocument("text"), HeldOutDocument("Text", "de")]
    assert languages_without_expert(documents, {"en": 0, "fr": 1}) == [None, "de"]
    assert languages_without_expert(documents, None) == [None, "de", "en"]
    assert languages_without_expert(DOCUMENTS, {"en": 0}) == []
