from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from indexing.sparse import best_columns, entries, keep_largest, load_csr, save_csr

MATRICES = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.sampled_from([0, 0, 1, 2, 3])
)


def places(row: np.ndarray, k: int) -> list[int]:
    """Columns of the `k` largest stored scores, best first, equal scores by column."""
    stored = [column for column in range(len(row)) if row[column] != 0]
    return sorted(stored, key=lambda column: (-row[column], column))[:k]


class TestBestColumns:
    def test_orders_by_score_then_column_also_at_the_border(self):
        columns = np.array([9, 2, 7, 4, 1], dtype=np.int32)
        scores = np.array([1, 1, 5, 1, 1], dtype=np.float32)
        assert columns[best_columns(columns, scores, 3)].tolist() == [7, 1, 2]

    def test_gives_everything_where_there_is_less(self):
        columns, scores = np.array([3, 1], dtype=np.int32), np.array([1, 2], dtype=np.float32)
        assert columns[best_columns(columns, scores, 5)].tolist() == [1, 3]
        assert len(best_columns(columns[:0], scores[:0], 5)) == 0

    @given(MATRICES, st.integers(1, 9))
    def test_equals_sorting(self, dense, k):
        matrix = sp.csr_matrix(dense)
        for row in range(matrix.shape[0]):
            start, stop = matrix.indptr[row], matrix.indptr[row + 1]
            columns = matrix.indices[start:stop]
            assert columns[best_columns(columns, matrix.data[start:stop], k)].tolist() == places(dense[row], k)


class TestKeepLargest:
    @given(MATRICES, st.integers(1, 9))
    def test_equals_sorting(self, dense, k):
        kept = keep_largest(sp.csr_matrix(dense), k)
        expected = np.zeros_like(dense)
        for row in range(len(dense)):
            expected[row, places(dense[row], k)] = dense[row, places(dense[row], k)]
        np.testing.assert_array_equal(kept.toarray(), expected)
        assert kept.dtype == np.float32
        assert kept.has_sorted_indices

    def test_of_no_rows_has_no_rows(self):
        assert keep_largest(sp.csr_matrix((0, 4), dtype=np.float32), 2).shape == (0, 4)


class TestEntries:
    @given(MATRICES, st.integers(0, 2**32 - 1))
    def test_equal_the_dense_matrix(self, dense, seed):
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, dense.shape[0], size=20)
        columns = rng.integers(0, dense.shape[1], size=20)
        found = entries(sp.csr_matrix(dense), rows, columns)
        np.testing.assert_array_equal(found, dense[rows, columns])
        assert found.dtype == np.float32

    def test_of_a_huge_matrix_do_not_overflow(self):
        side = 3_000_000
        at = np.array([side - 1])
        matrix = sp.csr_matrix((np.ones(1, dtype=np.float32), (at, at)), shape=(side, side))
        assert entries(matrix, at.astype(np.int32), at.astype(np.int32)).tolist() == [1.0]

    def test_of_nothing_are_nothing(self):
        nothing = np.zeros(0, dtype=np.int64)
        assert entries(sp.csr_matrix(np.eye(2, dtype=np.float32)), nothing, nothing).shape == (0,)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_a_loaded_matrix_is_the_saved_one(tmp_path, shape):
    matrix = sp.random_array(shape, density=0.5, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    save_csr(sp.csr_matrix(matrix), tmp_path / "matrix.safetensors")
    loaded = load_csr(tmp_path / "matrix.safetensors")
    assert isinstance(loaded, sp.csr_matrix)
    assert loaded.shape == shape
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.toarray(), matrix.toarray())
