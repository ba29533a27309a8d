import numpy as np
import pytest

from tests.helpers.transport import assert_cheapest, least_cost
from xelm_nemo._csrc import balanced_assign

NO_LIMIT = 2**63 - 1


def solve(cost, price=None, settled=None, reach=NO_LIMIT):
    cost = np.asarray(cost, np.int32)
    price = np.zeros(cost.shape[1], np.int64) if price is None else np.asarray(price)
    settled = np.zeros(cost.shape[1], np.int64) if settled is None else np.asarray(settled)
    return balanced_assign(cost, (cost + price).argmin(1), price, settled, reach)


@pytest.mark.parametrize("levels", [3, 10, 10**6])  # 3 levels tie nearly everywhere
def test_the_total_cost_is_the_least_there_is(levels):
    rng = np.random.default_rng(levels)
    for _ in range(100):
        cost = rng.integers(0, levels, (rng.integers(1, 40), rng.integers(1, 9)))
        cluster, price, left = solve(cost, price=rng.integers(0, levels, cost.shape[1]))
        assert left == 0
        assert_cheapest(cost, cluster, price)
        assert cost[np.arange(len(cost)), cluster].sum() == least_cost(cost)


def test_it_beats_the_greedy_choice():
    # Nearest pair first puts document 0 into cluster 0, and then document 1 has to take 100.
    cluster, _, _ = solve([[0, 1], [2, 100]])
    assert cluster.tolist() == [1, 0]


def test_settled_documents_count_and_stay():
    cluster, _, left = solve([[0, 9], [0, 5], [0, 7], [0, 6]], settled=[2, 0])
    assert left == 0
    assert cluster.tolist() == [0, 1, 1, 1]


def test_reach_ends_the_work_with_prices_that_still_fit():
    rng = np.random.default_rng(0)
    cost = rng.integers(0, 1000, (60, 3)) + np.array([0, 100, 200])
    cluster, price, left = solve(cost, reach=50)
    assert left > 0
    assert np.ptp(price) == 50
    total = cost + price
    assert (total[np.arange(60), cluster] == total.min(1)).all()
    cluster, price, left = balanced_assign(cost, cluster, price, np.zeros(3), NO_LIMIT)
    assert left == 0
    assert_cheapest(cost, cluster, price)


def test_documents_that_may_not_move_end_it_too():
    cluster, _, left = solve([[0, 9]], settled=[3, 0])
    assert (cluster.tolist(), left) == ([1], 1)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 5)])
def test_few_documents(shape):
    cluster, price, left = solve(np.zeros(shape, int))
    assert left == 0
    assert_cheapest(np.zeros(shape, int), cluster, price)


def test_costs_are_read_by_their_shape_not_by_their_memory():
    cost = np.random.default_rng(2).integers(0, 99, (3, 7))
    assert solve(cost.T)[0].tolist() == solve(cost.T.copy())[0].tolist()


def test_a_cluster_that_is_not_the_best_is_refused_by_its_position():
    with pytest.raises(ValueError, match=r"cluster_of\[1\]=0 is not the best"):
        balanced_assign(np.array([[0, 1], [1, 0]]), [0, 0], [0, 0], [0, 0], NO_LIMIT)
    with pytest.raises(ValueError, match=r"cluster_of\[0\]=2 is not the best"):
        balanced_assign(np.array([[0, 1]]), [2], [0, 0], [0, 0], NO_LIMIT)


def test_a_negative_number_of_settled_documents_is_refused():
    with pytest.raises(ValueError, match=r"settled\[1\]=-1"):
        solve([[0, 1]], settled=[0, -1])


@pytest.mark.parametrize(
    ("shape", "found"), [((4,), r"\[4\]"), ((2, 3, 4), r"\[2, 3, 4\]"), ((2, 5), r"\[2, 5\]")]
)
def test_shapes_that_do_not_fit_are_named(shape, found):
    with pytest.raises(ValueError, match=f"cost {found}"):
        balanced_assign(np.zeros(shape, int), [0, 0], [0, 0], [0, 0], NO_LIMIT)


def test_documents_without_any_cluster_are_refused():
    with pytest.raises(ValueError, match=r"cost=\[2, 0\]"):
        balanced_assign(np.zeros((2, 0), int), [0, 0], np.zeros(0), np.zeros(0), NO_LIMIT)
