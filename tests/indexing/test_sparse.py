from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from indexing import sparse as module
from indexing.sparse import (
    are_among,
    distinct,
    entries_at,
    keep_largest,
    largest,
    load_csr,
    place_in_runs,
    positions_of,
    replace_rows,
    rows_of,
    save_csr,
)

MATRICES = arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.sampled_from([0, 0, 1, 2, 3])
)


def places(row: np.ndarray, k: int) -> list[int]:
    """Columns of the `k` largest stored scores, best first, equal scores by column."""
    stored = [column for column in range(len(row)) if row[column] != 0]
    return sorted(stored, key=lambda column: (-row[column], column))[:k]


def shuffled(dense: np.ndarray, seed: int) -> sp.csr_matrix:
    """The matrix with the entries of each row in any order."""
    matrix, rng = sp.csr_matrix(dense), np.random.default_rng(seed)
    order = np.lexsort((rng.random(matrix.nnz), rows_of(matrix)))
    return sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr), shape=matrix.shape)


KEYS = st.lists(st.integers(-9, 9), max_size=30).map(lambda values: np.array(values, dtype=np.int64))


class TestRuns:
    @given(KEYS)
    def test_places_count_from_zero_in_each_run(self, values):
        expected: list[int] = []
        for position, value in enumerate(values):
            again = position > 0 and values[position - 1] == value
            expected.append(expected[-1] + 1 if again else 0)
        assert place_in_runs(values).tolist() == expected

    @given(KEYS)
    def test_distinct_values_are_those_of_a_set(self, values):
        assert distinct(values).tolist() == sorted(set(values.tolist()))


class TestLargest:
    @given(MATRICES, st.integers(1, 9))
    def test_equals_sorting(self, dense, k):
        matrix = sp.csr_matrix(dense)
        found = largest(matrix, k)
        by_row = list(zip(rows_of(matrix)[found].tolist(), matrix.indices[found].tolist(), strict=True))
        assert by_row == [(row, column) for row in range(len(dense)) for column in places(dense[row], k)]

    def test_orders_by_score_then_column_also_at_the_border(self):
        matrix = sp.csr_matrix(np.array([[0, 1, 1, 0, 1, 0, 0, 5, 0, 1]], dtype=np.float32))
        assert matrix.indices[largest(matrix, 3)].tolist() == [7, 1, 2]

    @given(MATRICES, st.integers(1, 9), st.data())
    def test_takes_columns_in_any_order_and_leaves_some_out(self, dense, k, data):
        matrix = shuffled(dense, data.draw(st.integers(0, 99)))
        among = np.array(data.draw(st.lists(st.booleans(), min_size=matrix.nnz, max_size=matrix.nnz)), dtype=np.bool_)
        shown = np.zeros_like(dense)
        shown[rows_of(matrix)[among], matrix.indices[among]] = matrix.data[among]
        found = largest(matrix, k, among)
        by_row = list(zip(rows_of(matrix)[found].tolist(), matrix.indices[found].tolist(), strict=True))
        assert by_row == [(row, column) for row in range(len(dense)) for column in places(shown[row], k)]


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

    @given(MATRICES, st.integers(1, 9), st.integers(1, 6))
    def test_blocks_of_rows_give_the_same_as_one_block(self, dense, k, entries_per_block):
        whole = keep_largest(sp.csr_matrix(dense), k)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ENTRIES_PER_BLOCK", entries_per_block)
            patch.setattr(module, "ROWS_AT_ONCE", 2)
            blocks = keep_largest(sp.csr_matrix(dense), k)
        np.testing.assert_array_equal(blocks.toarray(), whole.toarray())

    def test_takes_columns_in_any_order(self):
        matrix = sp.csr_matrix((np.ones(3, dtype=np.float32), np.array([2, 0, 1]), np.array([0, 3])), shape=(1, 3))
        assert keep_largest(matrix, 2).indices.tolist() == [0, 1]

    def test_of_no_rows_has_no_rows(self):
        assert keep_largest(sp.csr_matrix((0, 4), dtype=np.float32), 2).shape == (0, 4)


class TestPairs:
    @given(MATRICES, st.integers(0, 2**32 - 1), st.sampled_from([1, 9, 1000]))
    def test_are_found_among_the_entries(self, dense, seed, cells):
        rng = np.random.default_rng(seed)
        rows, columns = np.sort(rng.integers(0, dense.shape[0], size=20)), rng.integers(0, dense.shape[1], size=20)
        matrix = shuffled(dense, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "DENSE_CELLS", cells)
            found, among = entries_at(matrix, rows, columns), are_among(matrix, rows, columns)
        np.testing.assert_array_equal(found, dense[rows, columns])
        assert found.dtype == np.float32
        asked = set(zip(rows.tolist(), columns.tolist(), strict=True))
        stored = zip(rows_of(matrix).tolist(), matrix.indices.tolist(), strict=True)
        assert among.tolist() == [pair in asked for pair in stored]

    def test_of_nothing_are_none(self):
        nothing, empty = np.zeros(0, dtype=np.int64), sp.csr_matrix((2, 3), dtype=np.float32)
        assert entries_at(empty, nothing, nothing).shape == are_among(empty, np.zeros(1, int), np.zeros(1, int)).shape
        assert entries_at(sp.csr_matrix((0, 0), dtype=np.float32), nothing, nothing).shape == (0,)


class TestPositions:
    @given(st.sets(st.integers(0, 99)), st.lists(st.integers(0, 99)))
    def test_lead_to_the_keys(self, keys, wanted):
        ordered = sorted(keys)
        found = positions_of(np.array(ordered, dtype=np.int64), np.array(wanted, dtype=np.int64))
        assert found.tolist() == [ordered.index(key) if key in keys else -1 for key in wanted]

    def test_among_no_keys_there_are_none(self):
        nothing = np.zeros(0, dtype=np.int64)
        assert positions_of(nothing, np.array([3, 4])).tolist() == [-1, -1]
        assert positions_of(np.array([3]), nothing).shape == (0,)


@given(MATRICES, st.data())
def test_replaced_rows_come_from_the_others_and_the_rest_stays(dense, data):
    rows = np.array(data.draw(st.lists(st.integers(0, len(dense) - 1), unique=True)), dtype=np.int64)
    others = 9 * np.eye(len(rows), dense.shape[1], dtype=np.float32)
    expected = dense.copy()
    expected[rows] = others
    np.testing.assert_array_equal(replace_rows(sp.csr_matrix(dense), rows, sp.csr_matrix(others)).toarray(), expected)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_a_loaded_matrix_is_the_saved_one(tmp_path, shape):
    matrix = sp.random_array(shape, density=0.5, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    save_csr(sp.csr_matrix(matrix), tmp_path / "matrix.safetensors")
    loaded = load_csr(tmp_path / "matrix.safetensors")
    assert isinstance(loaded, sp.csr_matrix)
    assert loaded.shape == shape
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.toarray(), matrix.toarray())
