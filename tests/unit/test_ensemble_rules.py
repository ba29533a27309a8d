import math

import pytest
import torch

from xelm_nemo.ensemble.rules import (
    Ensemble,
    Evidence,
    bayes_log_weights,
    ensemble_log_weights,
    experts_needed,
    product_of_experts_log_weights,
    random_squared_distances,
)
from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import RULES
from xelm_nemo.router.config import RouterConfig

P = [[0.5, 0.1, 0.3], [0.2, 0.4, 0.6]]  # probability of each target, [E, T]
DISTANCES = [[0.2, 0.9], [0.8, 0.5], [0.7, 0.7]]  # squared, [T, E]
ROUTER = RouterConfig(temperature=0.7)
LOG_P = torch.tensor(P).log()
EVIDENCE = Evidence(3, 2, torch.tensor(DISTANCES), LOG_P, language_expert=1, seed=5)


def weights(rule, top_k=None, temperature=None, router=ROUTER):
    return ensemble_log_weights(Ensemble("any", rule, top_k, temperature), EVIDENCE, router).exp()


def normalised(row):
    return [value / sum(row) for value in row]


def routed(temperature=ROUTER.temperature, power=2, distances=DISTANCES):
    """The router's weights by the formula: softmax(-(d^2)^2 / T), or -d^2 / T."""
    return [normalised([math.exp(-(d**power) / temperature) for d in row]) for row in distances]


def test_clustering_takes_the_routers_weights():
    torch.testing.assert_close(weights("clustering"), torch.tensor(routed()))
    paper = weights("clustering", router=RouterConfig(temperature=0.7, rule="paper"))
    torch.testing.assert_close(paper, torch.tensor(routed(power=1)))


def test_clustering_takes_an_ensembles_own_temperature():
    torch.testing.assert_close(weights("clustering", temperature=3.0), torch.tensor(routed(3.0)))


def test_clustering_top_1_takes_the_largest_weight_at_each_token():
    assert weights("clustering", top_k=1).tolist() == [[1, 0], [0, 1], [1, 0]]


def test_random_weighs_by_distances_that_only_the_seed_decides():
    drawn = random_squared_distances(3, 2, seed=5)
    torch.testing.assert_close(weights("random"), torch.tensor(routed(distances=drawn.tolist())))
    assert not torch.equal(drawn, random_squared_distances(3, 2, seed=6))


def test_uniform_gives_every_expert_the_same():
    torch.testing.assert_close(weights("uniform"), torch.full((3, 2), 0.5))


def test_top1_language_takes_the_languages_expert_alone():
    assert weights("top1_language").tolist() == [[0, 1]] * 3


def test_bayes_weighs_by_the_previous_token_and_starts_uniform():
    expected = [[0.5, 0.5], normalised([0.5, 0.2]), normalised([0.1, 0.4])]
    torch.testing.assert_close(weights("bayes"), torch.tensor(expected))


def test_bayes_multiplies_with_its_prior():
    prior = torch.tensor([0.8, 0.2])
    expected = [[0.5, 0.5], normalised([0.8 * 0.5, 0.2 * 0.2]), normalised([0.8 * 0.1, 0.2 * 0.4])]
    torch.testing.assert_close(bayes_log_weights(LOG_P, prior.log()).exp(), torch.tensor(expected))


def test_product_of_experts_multiplies_previous_token_and_previous_routing():
    (a, b), (c, d), _ = routed()
    expected = [[0.5, 0.5], normalised([0.5 * a, 0.2 * b]), normalised([0.1 * c, 0.4 * d])]
    torch.testing.assert_close(weights("product_of_experts"), torch.tensor(expected))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_a_distribution_at_every_token(rule):
    torch.testing.assert_close(weights(rule).sum(1), torch.ones(3))


def test_no_rule_looks_at_the_token_that_it_predicts():
    changed = LOG_P.clone()
    changed[:, 2] = math.log(0.01)
    for rule in (bayes_log_weights, lambda log_p: product_of_experts_log_weights(log_p, LOG_P.T)):
        assert torch.equal(rule(changed), rule(LOG_P))


@pytest.mark.parametrize("rule", ["clustering", "product_of_experts", "bayes", "top1_language", "majority"])
def test_a_rule_without_its_evidence_says_what_it_needs(rule):
    with pytest.raises(ConfigError, match=f"evaluation.rules='{rule}'.*tf-idf"):
        ensemble_log_weights(Ensemble("any", rule), Evidence(3, 2), ROUTER)


@pytest.mark.parametrize(
    "rule, top_k, needed",
    [
        ("clustering", None, [0, 1]),
        ("clustering", 1, [0, 1]),  # one at the first token, the other at the second
        ("top1_language", None, [1]),
        ("bayes", 1, [0, 1]),  # what every expert says decides
        ("product_of_experts", 1, [0, 1]),
    ],
)
def test_the_experts_that_a_document_needs(rule, top_k, needed):
    assert experts_needed(Ensemble("any", rule, top_k), EVIDENCE, ROUTER) == needed


def test_an_expert_that_no_token_keeps_is_not_needed():
    near_first = Evidence(2, 2, torch.tensor([[0.2, 0.9], [0.3, 0.4]]))
    assert experts_needed(Ensemble("any", "clustering", 1), near_first, ROUTER) == [0]
