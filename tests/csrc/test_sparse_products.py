"""Products with sparse matrices, bit for bit as scipy adds them up."""

import numpy as np
import pytest
from scipy import sparse

from xelm_nemo._csrc import add_transposed_times, sparse_times


@pytest.fixture
def matrix():
    dense = sparse.random(150, 70, 0.2, random_state=0).toarray()
    dense[[3, 149]] = 0
    return sparse.csr_matrix(dense)


def parts(matrix):
    return matrix.indptr.astype(np.int64), matrix.indices, matrix.data


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("rows", [slice(None), slice(10, 97), slice(5, 5)], ids=str)
def test_some_rows_times_a_dense_matrix(matrix, rows, num_threads):
    dense = np.random.default_rng(1).standard_normal((70, 13))
    found = sparse_times(*parts(matrix), rows, dense, num_threads=num_threads)
    assert np.array_equal(found, matrix[rows] @ dense)


@pytest.mark.parametrize("num_threads", [1, 3, 20])
def test_transposed_rows_add_up_to_the_whole_whatever_the_blocks(matrix, num_threads):
    dense = np.random.default_rng(1).standard_normal((150, 13))
    total = np.zeros((70, 13))
    for rows in (slice(0, 1), slice(1, 90), slice(90, 150)):
        add_transposed_times(*parts(matrix), rows, dense[rows], total, num_threads=num_threads)
    assert np.array_equal(total, matrix.T.tocsr() @ dense)


def test_shapes_that_do_not_fit_are_refused(matrix):
    starts, columns, values = parts(matrix)
    with pytest.raises(ValueError, match=r"columns and .* values do not make rows of"):
        sparse_times(starts, columns[:-1], values[:-1], slice(None), np.ones((70, 2)), num_threads=1)
    with pytest.raises(ValueError, match="rows have a step"):
        sparse_times(starts, columns, values, slice(0, 9, 2), np.ones((70, 2)), num_threads=1)
    with pytest.raises(ValueError, match=r"not \[n, L\] and \[F, L\] for n rows"):
        add_transposed_times(
            starts, columns, values, slice(0, 9), np.ones((8, 2)), np.zeros((70, 2)), num_threads=1
        )
