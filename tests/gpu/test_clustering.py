"""SVD and balanced k-means on a GPU: the same bits each time, and as good as the CPU's."""

import numpy as np
import pytest
import torch

from tests.helpers.topics import documents
from xelm_nemo.clustering import svd
from xelm_nemo.clustering.kmeans import balanced_kmeans
from xelm_nemo.clustering.svd import right_singular_vectors

pytestmark = pytest.mark.gpu
NUM_DOCUMENTS, NUM_CLUSTERS = 70_000, 16  # more than a sample of k-means


@pytest.fixture(scope="module")
def vectors():
    """Unit rows around corners of different sizes."""
    rng = np.random.default_rng(0)
    corner = rng.choice(NUM_CLUSTERS, NUM_DOCUMENTS, p=rng.dirichlet(np.full(NUM_CLUSTERS, 5.0)))
    rows = np.eye(32)[corner] + 0.2 * rng.normal(size=(NUM_DOCUMENTS, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def kmeans(vectors, seed=1, **settings):
    return balanced_kmeans(vectors, NUM_CLUSTERS, seed=seed, max_iterations=20, num_starts=2, **settings)


def test_one_seed_gives_the_same_singular_vectors(device, monkeypatch):
    monkeypatch.setattr(svd, "_LONGEST_BAG", 7)  # so that rows are added up in pieces
    matrix = documents(3000, 4000, topics=40)
    one, two = (right_singular_vectors(matrix, 20, seed=3, device=torch.device(device)) for _ in range(2))
    assert np.array_equal(one, two)
    other = right_singular_vectors(matrix, 20, seed=4, device=torch.device(device))
    assert not np.array_equal(one, other)


def test_singular_subspace_is_that_of_the_cpu(device):
    matrix = documents(3000, 4000, topics=12)
    found, expected = (
        right_singular_vectors(matrix, 8, seed=0, device=torch.device(place)) for place in (device, "cpu")
    )
    assert found @ found.T == pytest.approx(np.eye(8), abs=1e-5)
    cosines = np.linalg.svd(found @ expected.T, compute_uv=False)  # of the angles between the two
    assert cosines == pytest.approx(np.ones(8), abs=1e-5)
    assert np.linalg.norm(matrix @ found.T) == pytest.approx(np.linalg.norm(matrix @ expected.T), rel=1e-5)


@pytest.mark.parametrize("balanced", [True, False])
def test_one_seed_gives_the_same_clusters(vectors, balanced):
    one, two = (kmeans(vectors, balanced=balanced) for _ in range(2))
    assert np.array_equal(one.centroids, two.centroids)
    assert np.array_equal(one.assignment, two.assignment)
    assert one.cost == two.cost


def test_sizes_differ_by_one_at_most_and_centroids_are_means(vectors):
    found = kmeans(vectors)
    assert found.sizes.sum() == NUM_DOCUMENTS and found.sizes.max() - found.sizes.min() <= 1
    means = np.stack([vectors[found.assignment == k].mean(0) for k in range(NUM_CLUSTERS)])
    assert found.centroids == pytest.approx(means, abs=1e-5)


def test_cost_is_that_of_the_cpu(vectors, monkeypatch):
    found = kmeans(vectors)
    monkeypatch.setattr("xelm_nemo.device.device", lambda: torch.device("cpu"))
    assert found.cost == pytest.approx(kmeans(vectors).cost, rel=1e-2)
