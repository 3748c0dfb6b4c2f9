from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing import covisitation as module
from indexing.covisitation import CovisitationConfig, covisitation
from indexing.history import Histories

N_ITEMS = 6
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=9), max_size=5)


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.array([row for rows in lists for row in rows], dtype=np.int32))


def by_hand(lists: list[list[int]], config: CovisitationConfig) -> np.ndarray:
    """The docstring of `covisitation`, as two loops over each history."""
    scores, counts = np.zeros((N_ITEMS, N_ITEMS)), np.zeros(N_ITEMS)
    for rows in lists:
        for place, first in enumerate(rows):
            counts[first] += 1
            for distance in range(1, config.window + 1):
                if place + distance < len(rows) and rows[place + distance] != first:
                    second = rows[place + distance]
                    scores[first, second] += distance**-config.distance_power
                    scores[second, first] += config.reverse_weight * distance**-config.distance_power
    return scores / np.sqrt(np.outer(np.maximum(counts, 1), np.maximum(counts, 1)))


@given(LISTS, st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_equals_a_double_loop(lists, window, reverse_weight, distance_power):
    config = CovisitationConfig(window=window, reverse_weight=reverse_weight, distance_power=distance_power)
    matrix = covisitation(histories_of(lists), N_ITEMS, config)
    assert matrix.dtype == np.float32
    assert matrix.has_sorted_indices
    np.testing.assert_allclose(matrix.toarray(), by_hand(lists, config), rtol=1e-5, atol=1e-7)
    assert matrix.nnz == np.count_nonzero(matrix.toarray())


@given(LISTS)
def test_an_item_is_no_neighbour_of_itself(lists):
    assert not covisitation(histories_of(lists), N_ITEMS, CovisitationConfig()).diagonal().any()


def test_pairs_have_a_direction():
    matrix = covisitation(histories_of([[0, 1]]), N_ITEMS, CovisitationConfig(reverse_weight=0.25)).toarray()
    assert matrix[0, 1] == 1.0
    assert matrix[1, 0] == 0.25


def test_pairs_do_not_reach_into_the_next_users_history():
    assert covisitation(histories_of([[0], [1], [2]]), N_ITEMS, CovisitationConfig()).nnz == 0


def test_only_the_best_neighbours_are_kept_lowest_row_first_among_equals():
    lists = [[0, 4], [0, 3], [0, 2], [0, 2]]
    matrix = covisitation(histories_of(lists), N_ITEMS, CovisitationConfig(n_neighbours=2)).toarray()
    assert np.flatnonzero(matrix[0]).tolist() == [2, 3]


@given(LISTS, st.integers(1, 40))
def test_blocks_of_distances_give_the_same_as_one_block(lists, pairs_per_block):
    config = CovisitationConfig(window=7)
    whole = covisitation(histories_of(lists), N_ITEMS, config).toarray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAIRS_PER_BLOCK", pairs_per_block)
        np.testing.assert_allclose(covisitation(histories_of(lists), N_ITEMS, config).toarray(), whole, rtol=1e-5)


def test_the_window_shrinks_until_the_pairs_are_few_enough():
    lists = [[0, 1, 2, 3], [4, 5]]  # 6 events
    few = covisitation(histories_of(lists), N_ITEMS, CovisitationConfig(window=9, max_pairs=12))
    assert (few != covisitation(histories_of(lists), N_ITEMS, CovisitationConfig(window=2))).nnz == 0
    least = covisitation(histories_of(lists), N_ITEMS, CovisitationConfig(window=9, max_pairs=1))
    assert (least != covisitation(histories_of(lists), N_ITEMS, CovisitationConfig(window=1))).nnz == 0


@pytest.mark.parametrize("wrong", [{"window": 0}, {"max_pairs": 0}, {"n_neighbours": 0}])
def test_config_refuses_empty_windows_and_lists(wrong):
    with pytest.raises(ValueError, match="window, max_pairs and n_neighbours must be at least 1"):
        CovisitationConfig(**wrong)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_config_refuses_a_reverse_weight_that_is_no_share(weight):
    with pytest.raises(ValueError, match=rf"reverse_weight={weight} must lie in \[0, 1\]"):
        CovisitationConfig(reverse_weight=weight)


@pytest.mark.parametrize("power", [-0.5, float("nan")])
def test_config_refuses_a_power_that_favours_the_distant(power):
    with pytest.raises(ValueError, match=rf"distance_power={power} must be 0 or more"):
        CovisitationConfig(distance_power=power)
