import numpy as np
import pytest
import torch

from tests.helpers.transport import assert_cheapest
from xelm_nemo.clustering import balance
from xelm_nemo.clustering.balance import balanced_assignment, nearly_balanced_assignment
from xelm_nemo.clustering.prices import COST_LIMIT, balancing_prices


def costs(num_documents, num_clusters, seed=0):
    """Squared distances of points in groups of very different sizes."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(12, 6))
    points = center[rng.choice(12, num_documents, p=rng.dirichlet(np.full(12, 0.6)))]
    points = points + 0.5 * rng.normal(size=points.shape)
    chosen = points[rng.choice(num_documents, num_clusters, replace=False)]
    square = ((points[:, None] - chosen) ** 2).sum(2)
    return torch.from_numpy(np.rint(square * (COST_LIMIT / square.max())).astype(np.int32))


@pytest.mark.parametrize(
    ("num_documents", "num_clusters"), [(7, 7), (50, 4), (1003, 8), (20_000, 16), (20_011, 40), (9, 1)]
)
def test_the_assignment_is_the_cheapest_and_sizes_differ_by_one_at_most(num_documents, num_clusters):
    cost = costs(num_documents, num_clusters)
    assert_cheapest(cost, *balanced_assignment(cost))


def test_any_guess_of_prices_leads_to_the_same_assignment():
    cost = costs(5000, 10)
    cluster, price = balanced_assignment(cost)
    for guess in (price, price[::-1].copy(), np.full(10, COST_LIMIT)):
        assert torch.equal(balanced_assignment(cost, guess)[0], cluster)


@pytest.mark.parametrize("far", [0.0, 1.0])
@pytest.mark.parametrize("alike", [0, 8000])
def test_nearly_balanced_clusters_are_a_twentieth_above_their_share_at_most(alike, far):
    cost = costs(20_000, 10)
    cost[:alike] = cost[0]
    guess = (far * np.linspace(0, COST_LIMIT, 10)).astype(np.int64)
    cluster, price = nearly_balanced_assignment(cost, guess)
    total = cost + torch.from_numpy(price)
    assert np.bincount(cluster, minlength=10).max() <= 1.05 * 2000
    assert total.gather(1, cluster[:, None])[:, 0].equal(total.amin(1))


def test_far_off_guesses_cost_no_accuracy():
    cost = costs(20_000, 10)
    guess = np.linspace(0, COST_LIMIT, 10).astype(np.int64)
    wanted = torch.bincount((cost + torch.from_numpy(balancing_prices(cost, guess))).argmin(1), minlength=10)
    assert int((wanted - 2000).clamp(min=0).sum()) < 0.005 * len(cost)


def test_prices_leave_little_to_be_moved():
    cost = costs(20_000, 16)
    price = balancing_prices(cost, np.zeros(16, np.int64))
    wanted = torch.bincount((cost + torch.from_numpy(price)).argmin(1), minlength=16)
    assert (wanted - 1250).abs().sum() < 0.02 * 20_000
    assert (torch.bincount(cost.argmin(1), minlength=16) - 1250).abs().sum() > 0.3 * 20_000


def test_too_few_documents_at_the_borders_are_made_up_for(monkeypatch):
    cost = costs(5000, 10)
    wanted = balanced_assignment(cost)[0]
    turns = []
    solver = balance._csrc.balanced_assign
    monkeypatch.setattr(balance, "_quantile", lambda values, share: 1000 << (4 * len(turns)))
    monkeypatch.setattr(
        balance._csrc, "balanced_assign", lambda *a: turns.append(solver(*a)[2]) or solver(*a), raising=True
    )
    assert torch.equal(balanced_assignment(cost)[0], wanted)
    assert turns[0] > 0 and turns[-1] == 0


def test_documents_that_are_all_alike_are_divided_all_the_same():
    cost = torch.full((1000, 7), 5, dtype=torch.int32)
    assert_cheapest(cost, *balanced_assignment(cost))
