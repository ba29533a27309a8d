import math

import pytest
import torch

from xelm_nemo.ensemble.rules import (
    Ensemble,
    Evidence,
    bayes_log_weights,
    ensemble_log_weights,
    product_of_experts_log_weights,
)
from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import RULES

P = [[0.5, 0.1, 0.3], [0.2, 0.4, 0.6]]  # probability of each target, [E, T]
ROUTER = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]  # [T, E]
LOG_P, LOG_ROUTER = torch.tensor(P).log(), torch.tensor(ROUTER).log()


def weights(rule, top_k=None):
    evidence = Evidence(LOG_P, LOG_ROUTER, language_expert=1)
    return ensemble_log_weights(Ensemble("any", rule, top_k), evidence).exp()


def normalised(row):
    return [value / sum(row) for value in row]


def test_clustering_takes_the_routers_weights():
    torch.testing.assert_close(weights("clustering"), torch.tensor(ROUTER))


def test_clustering_top_1_takes_the_largest_weight_at_each_token():
    assert weights("clustering", top_k=1).tolist() == [[1, 0], [0, 1], [1, 0]]


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
    expected = [[0.5, 0.5], normalised([0.5 * 0.9, 0.2 * 0.1]), normalised([0.1 * 0.3, 0.4 * 0.7])]
    torch.testing.assert_close(weights("product_of_experts"), torch.tensor(expected))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_a_distribution_at_every_token(rule):
    torch.testing.assert_close(weights(rule).sum(1), torch.ones(3))


def test_no_rule_looks_at_the_token_that_it_predicts():
    changed = LOG_P.clone()
    changed[:, 2] = math.log(0.01)
    for rule in (bayes_log_weights, lambda log_p: product_of_experts_log_weights(log_p, LOG_ROUTER)):
        assert torch.equal(rule(changed), rule(LOG_P))


@pytest.mark.parametrize("rule", ["clustering", "product_of_experts", "top1_language", "majority"])
def test_a_rule_without_its_evidence_says_what_it_needs(rule):
    with pytest.raises(ConfigError, match=f"evaluation.rules='{rule}'.*tf-idf"):
        ensemble_log_weights(Ensemble("any", rule), Evidence(LOG_P))
