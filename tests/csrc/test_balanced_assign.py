import numpy as np
import pytest

from xelm_nemo._csrc import balanced_assign


def balanced_assign_ref(distance):
    num_documents, num_clusters = distance.shape
    base, extra = divmod(num_documents, num_clusters)
    size = np.zeros(num_clusters, int)
    cluster_of = np.full(num_documents, -1)
    for n, k in zip(*np.unravel_index(distance.argsort(None, kind="stable"), distance.shape), strict=True):
        if cluster_of[n] < 0 and size[k] < base + (extra > 0):
            extra -= size[k] == base
            size[k] += 1
            cluster_of[n] = k
    return cluster_of


def test_agrees_with_the_definition_whether_or_not_distances_tie():
    rng = np.random.default_rng(0)
    for case in range(300):
        shape = rng.integers(0, 40), rng.integers(1, 9)
        levels = (3, 10, 10**6)[case % 3]  # 3 levels tie nearly everywhere
        distance = rng.integers(0, levels, shape).astype(np.float32)
        assert balanced_assign(distance).tolist() == balanced_assign_ref(distance).tolist()


@pytest.mark.parametrize(
    ("num_documents", "num_clusters"), [(12, 4), (13, 4), (15, 4), (3, 5), (1, 1), (0, 3)]
)
def test_sizes_differ_by_at_most_one(num_documents, num_clusters):
    distance = np.random.default_rng(1).random((num_documents, num_clusters), np.float32)
    sizes = np.bincount(balanced_assign(distance), minlength=num_clusters)
    assert sizes.sum() == num_documents
    assert sizes.max() - sizes.min() <= 1


def test_the_cluster_that_is_wanted_first_gets_the_odd_document():
    assert balanced_assign(np.array([[5, 1], [5, 2], [3, 4]], np.float32)).tolist() == [1, 1, 0]


def test_ties_go_to_the_first_document_and_the_first_cluster():
    assert balanced_assign(np.zeros((4, 2), np.float32)).tolist() == [0, 0, 1, 1]


def test_infinite_distances_are_a_last_resort():
    inf = np.inf
    assert balanced_assign(np.array([[inf, 1], [inf, inf], [0, inf], [inf, 2]], np.float32)).tolist() == [
        1,
        0,
        0,
        1,
    ]


def test_a_transposed_matrix_is_read_by_its_shape_not_by_its_memory():
    distance = np.random.default_rng(2).random((3, 7), np.float32)
    assert balanced_assign(distance.T).tolist() == balanced_assign(distance.T.copy()).tolist()


def test_nan_is_refused_by_its_position():
    distance = np.zeros((3, 2), np.float32)
    distance[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"distance\[2, 1\]=nan"):
        balanced_assign(distance)


@pytest.mark.parametrize(
    ("shape", "found"), [((4,), r"\[4\]"), ((2, 3, 4), r"\[2, 3, 4\]"), ((5, 0), r"\[5, 0\]")]
)
def test_a_wrong_shape_is_named(shape, found):
    with pytest.raises(ValueError, match=found):
        balanced_assign(np.zeros(shape, np.float32))
