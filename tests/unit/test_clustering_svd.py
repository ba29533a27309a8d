import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from tests.helpers.topics import documents
from xelm_nemo.clustering import svd
from xelm_nemo.clustering.rows_on_disk import store_rows
from xelm_nemo.clustering.svd import bag_product, right_singular_vectors

CPU = torch.device("cpu")


def test_the_vectors_are_those_of_the_whole_decomposition():
    matrix = documents()
    found = right_singular_vectors(matrix, 8, seed=0, device=CPU)
    _, strength, exact = np.linalg.svd(matrix.toarray(), full_matrices=False)
    assert np.abs((found * exact[:8]).sum(1)) == pytest.approx(np.ones(8), abs=1e-4)
    assert np.linalg.norm(matrix @ found.T, axis=0) == pytest.approx(strength[:8], rel=1e-6)
    assert found @ found.T == pytest.approx(np.eye(8), abs=1e-12)
    assert (found[np.arange(8), np.abs(found).argmax(1)] > 0).all()


def test_they_hold_no_less_than_scikit_learns():
    matrix = documents(topics=60)
    theirs = TruncatedSVD(20, random_state=0).fit(matrix).components_
    ours = right_singular_vectors(matrix, 20, seed=0, device=CPU)
    assert np.linalg.norm(matrix @ ours.T) >= (1 - 1e-6) * np.linalg.norm(matrix @ theirs.T)


def test_bits_depend_on_the_seed_and_not_on_the_threads(monkeypatch):
    monkeypatch.setitem(svd.map_blocks.__globals__["_ROWS"], "cpu", 100)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(right_singular_vectors(documents(topics=40), 10, seed=3, device=CPU))
    torch.set_num_threads(before)
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], right_singular_vectors(documents(topics=40), 10, seed=4, device=CPU))


def test_rows_on_disk_give_the_bits_of_rows_in_memory(tmp_path):
    matrix = documents()
    parts = [
        (part.data, part.indices, part.indptr.astype(np.int64))
        for part in (matrix[:1], matrix[1:1], matrix[1:250], matrix[250:])
    ]
    stored = store_rows(parts, matrix.shape[1], tmp_path)
    assert stored.shape == matrix.shape and np.array_equal(stored.indptr, matrix.indptr)
    found, expected = (right_singular_vectors(rows, 8, seed=0, device=CPU) for rows in (stored, matrix))
    assert np.array_equal(found, expected)


def test_a_matrix_too_large_for_the_gpu_is_left_to_the_cpu(monkeypatch):
    monkeypatch.setattr(svd, "_MOST_ON_GPU", 100)
    found = right_singular_vectors(documents(), 8, seed=0, device=torch.device("cuda"))
    assert np.array_equal(found, right_singular_vectors(documents(), 8, seed=0, device=CPU))


def test_directions_beyond_the_rank_are_zero():
    matrix = sparse.csr_matrix(np.outer([1.0, 2, 3], [0, 3.0, 4, 0]))
    found = right_singular_vectors(matrix, 2, seed=0, device=CPU)
    assert found[0] == pytest.approx([0, 0.6, 0.8, 0], abs=1e-12)
    assert not found[1].any()
    assert not right_singular_vectors(sparse.csr_matrix((3, 4)), 2, seed=0, device=CPU).any()


def test_the_gpus_product_is_the_product(monkeypatch):
    monkeypatch.setattr(svd, "_LONGEST_BAG", 7)
    matrix = documents(50, 80)
    matrix[3] = 0
    matrix.eliminate_zeros()
    dense = torch.rand(80, 5, generator=torch.Generator().manual_seed(0))
    assert bag_product(matrix, CPU)(dense).numpy() == pytest.approx(matrix @ dense.numpy(), rel=1e-5)
