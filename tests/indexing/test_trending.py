from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexing.trending import group_neighbours, recency_weighted_counts

N_ITEMS = 8
ROWS = st.lists(st.integers(0, N_ITEMS - 1), max_size=30)


@given(ROWS, st.sampled_from([1.0, 2.5, 40.0]))
def test_counts_equal_a_loop(rows, half_life):
    expected = np.zeros(N_ITEMS)
    for age, row in enumerate(rows[::-1]):
        expected[row] += 0.5 ** (age / half_life)
    counts = recency_weighted_counts(np.array(rows, dtype=np.int32), N_ITEMS, half_life=half_life)
    assert counts.dtype == np.float32
    np.testing.assert_allclose(counts, expected, rtol=1e-6)


def test_counts_halve_with_age():
    counts = recency_weighted_counts(np.array([0, 1, 0, 2], dtype=np.int32), 4, half_life=2.0)
    np.testing.assert_allclose(counts, [0.5**1.5 + 0.5**0.5, 0.5, 1.0, 0.0], rtol=1e-6)


@given(
    st.lists(st.integers(0, 3), min_size=N_ITEMS, max_size=N_ITEMS),
    st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=N_ITEMS, max_size=N_ITEMS),
    st.integers(1, 9),
)
def test_group_neighbours_equal_a_loop(groups, counts, per_group):
    matrix = group_neighbours(np.array(groups), np.array(counts, dtype=np.float32), per_group=per_group)
    expected = np.zeros((max(groups) + 1, N_ITEMS))
    for group in set(groups):
        members = [item for item in range(N_ITEMS) if groups[item] == group and counts[item]]
        for item in sorted(members, key=lambda item: (-counts[item], item))[:per_group]:
            expected[group, item] = counts[item] / sum(counts[member] for member in members)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-6)


def test_no_items_have_no_groups():
    nothing = group_neighbours(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), per_group=3)
    assert nothing.shape == (0, 0)
