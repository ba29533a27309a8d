import math

import pytest
import torch

from xelm_nemo.errors import ConfigError
from xelm_nemo.router.weights import keep_top_k, router_log_weights, router_weights

DISTANCE = torch.tensor([[0.5, 1.0, 0.2], [1.3, 0.1, 0.1], [0.0, 2.0, 4.0]])


def slow_weights(row, temperature, power):
    raw = [math.exp(-(distance**power) / temperature) for distance in row]
    return [weight / sum(raw) for weight in raw]


@pytest.mark.parametrize("rule, power", [("upstream", 2), ("paper", 1)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_weights_follow_the_formula(rule, power, temperature):
    weights = router_weights(DISTANCE, temperature=temperature, rule=rule)
    expected = [slow_weights(row, temperature, power) for row in DISTANCE.tolist()]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-7, rtol=1e-6)


def test_top_k_keeps_the_largest_and_sums_to_one():
    full = router_weights(DISTANCE, temperature=0.5)
    weights = router_weights(DISTANCE, temperature=0.5, top_k=2)
    torch.testing.assert_close(weights[0], full[0] * torch.tensor([1, 0, 1]) / (full[0, 0] + full[0, 2]))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


def test_of_equal_experts_top_k_keeps_the_lower_index():
    assert router_weights(DISTANCE, temperature=0.1, top_k=1)[1].tolist() == [0, 1, 0]


def test_log_weights_of_dropped_experts_are_minus_infinity():
    log_weights = router_log_weights(DISTANCE, temperature=0.1, top_k=1)
    assert log_weights[0].tolist() == [-math.inf, -math.inf, 0.0]


def test_far_away_experts_give_no_nan():
    distance = torch.tensor([[4.0, 4.0], [0.0, 4.0]])
    log_weights = router_log_weights(distance, temperature=0.001)
    assert torch.isfinite(log_weights).all()
    torch.testing.assert_close(log_weights[0].exp(), torch.tensor([0.5, 0.5]))


def test_one_expert_has_all_the_weight():
    assert router_log_weights(torch.tensor([[1.7], [0.3]]), temperature=0.1).tolist() == [[0.0], [0.0]]


def test_top_k_of_all_experts_changes_nothing():
    log_weights = router_log_weights(DISTANCE, temperature=0.1)
    assert torch.equal(keep_top_k(log_weights, 3), log_weights)
    assert torch.equal(keep_top_k(log_weights, 99), log_weights)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"temperature": 0.0}, "router.temperature=0.0"),
        ({"temperature": math.nan}, "router.temperature=nan"),
        ({"temperature": 0.1, "rule": "cosine"}, "router.rule='cosine'"),
        ({"temperature": 0.1, "top_k": 0}, "top_k=0"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, named):
    with pytest.raises(ConfigError, match=named):
        router_weights(DISTANCE, **settings)
