from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing import ease as module
from indexing.ease import EaseConfig, ease
from indexing.history import Histories

N_ITEMS = 9
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=7), max_size=8)


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.array([row for rows in lists for row in rows], dtype=np.int32))


def by_hand(lists: list[list[int]], regularization: float) -> np.ndarray:
    """The formula over all items, in float64 and dense."""
    taken = np.zeros((len(lists), N_ITEMS))
    for user, rows in enumerate(lists):
        taken[user, rows] = 1.0
    inverse = np.linalg.inv(taken.T @ taken + regularization * np.eye(N_ITEMS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return np.maximum(weights, 0.0)


@settings(deadline=None)
@given(LISTS, st.sampled_from([0.5, 3.0, 200.0]))
def test_equals_the_dense_formula(lists, regularization):
    weights = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=regularization))
    assert weights.dtype == np.float32
    assert weights.has_sorted_indices
    np.testing.assert_allclose(weights.toarray(), by_hand(lists, regularization), atol=2e-6)


@given(LISTS, st.integers(1, 4))
def test_blocks_of_rows_give_the_same_as_one_block(lists, rows_per_block):
    whole = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1.0)).toarray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_PER_BLOCK", rows_per_block)
        blocks = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1.0)).toarray()
    np.testing.assert_array_equal(blocks, whole)


@given(LISTS, st.randoms())
def test_the_order_of_users_and_events_changes_nothing(lists, random):
    shuffled = [random.sample(rows, len(rows)) for rows in random.sample(lists, len(lists))]
    straight, permuted = (
        ease(histories_of(each), N_ITEMS, EaseConfig(regularization=1.0)) for each in (lists, shuffled)
    )
    np.testing.assert_array_equal(permuted.toarray(), straight.toarray())


def test_solves_the_regression_it_stands_for():
    rng = np.random.default_rng(0)
    taken = (rng.random((60, N_ITEMS)) < 0.4).astype(np.float64)
    weights = ease(
        histories_of([np.flatnonzero(row).tolist() for row in taken]), N_ITEMS, EaseConfig(regularization=2.0)
    )
    for item in range(N_ITEMS):
        others = np.delete(np.arange(N_ITEMS), item)
        normal = taken[:, others].T @ taken[:, others] + 2.0 * np.eye(N_ITEMS - 1)
        solution = np.linalg.solve(normal, taken[:, others].T @ taken[:, item])
        np.testing.assert_allclose(weights.toarray()[others, item], np.maximum(solution, 0.0), atol=1e-5)


def test_only_the_largest_weights_are_kept():
    lists = [[0, 1], [0, 1], [0, 2], [0, 3]]
    weights = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1.0, n_neighbours=1)).toarray()
    assert np.flatnonzero(weights[0]).tolist() == [1]


def test_of_more_items_than_fit_the_most_often_taken_take_part():
    lists = [[0, 5, 7], [0, 7], [7, 2], [2, 5, 7, 0]]
    without_rare = [[row for row in rows if row in (0, 7)] for rows in lists]
    found = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1.0, max_items=2)).toarray()
    np.testing.assert_allclose(found, by_hand(without_rare, 1.0), atol=2e-6)
    assert found[0, 7] > 0
    everything = ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1.0, max_items=4)).toarray()
    np.testing.assert_allclose(everything, by_hand(lists, 1.0), atol=2e-6)


def test_without_interactions_there_are_no_weights():
    weights = ease(histories_of([]), N_ITEMS, EaseConfig())
    assert weights.shape == (N_ITEMS, N_ITEMS)
    assert weights.nnz == 0


def test_a_matrix_that_float32_cannot_factorise_is_refused():
    lists = [[0, 1]] * 3
    with pytest.raises(ValueError, match=r"cannot be factorised in float32; raise ease\.regularization"):
        ease(histories_of(lists), N_ITEMS, EaseConfig(regularization=1e-20))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_config_refuses_a_regularization_that_does_not_hold_back(value):
    with pytest.raises(ValueError, match=rf"ease: regularization={value} must be above 0"):
        EaseConfig(regularization=value)


@pytest.mark.parametrize("wrong", [{"n_neighbours": 0}, {"max_items": -1}])
def test_config_refuses_empty_lists(wrong):
    with pytest.raises(ValueError, match="n_neighbours must be at least 1 and max_items 0 or more"):
        EaseConfig(**wrong)
