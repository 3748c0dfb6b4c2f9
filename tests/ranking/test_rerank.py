from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ranking.rerank import SMOOTHING, ListRules, rerank, top_k

SCHEMA = {"user_row": pl.Int32, "item_row": pl.Int32, "score": pl.Float64}
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), unique=True, max_size=25).flatmap(
    lambda pairs: st.lists(st.sampled_from([0.0, -1.5, 2.0]), min_size=len(pairs), max_size=len(pairs)).map(
        lambda scores: [(*pair, score) for pair, score in zip(pairs, scores, strict=True)]
    )
)
N_ITEMS = 10
NO_PINS = pl.DataFrame(schema={"user_row": pl.Int32, "item_row": pl.Int32, "position": pl.Int32})
NO_HISTORY = pl.DataFrame(schema={"user_row": pl.Int32, "item_row": pl.Int32})


def scored(rows: list[tuple[int, int, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def falling(n: int = N_ITEMS, user: int = 0) -> pl.DataFrame:
    """One user, item 0 the best, scores falling by one from item to item."""
    return scored([(user, item, float(-item)) for item in range(n)])


def rules_of(**given) -> ListRules:
    """The given rules over items that are all alike to no other and of one category, where nothing else is said."""
    vectors = given.pop("vectors", np.eye(N_ITEMS, dtype=np.float32))
    n_items = len(vectors)
    plain = {"comparable": np.ones(n_items, dtype=np.bool_), "categories": np.zeros(n_items, dtype=np.int64)}
    return ListRules(vectors=vectors, **{**plain, **given})


def listed(frame: pl.DataFrame, k: int, rules: ListRules, *, pins=NO_PINS, history=NO_HISTORY) -> pl.DataFrame:
    return rerank(frame, k, rules, pins=pins, history=history)


def pins_of(*rows: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=NO_PINS.schema, orient="row")


def history_of(*items: int) -> pl.DataFrame:
    return pl.DataFrame({"user_row": [0] * len(items), "item_row": items}, schema=NO_HISTORY.schema)


class TestTopK:
    def test_equal_scores_are_ordered_by_item_also_at_the_border(self):
        found = top_k(scored([(0, 9, 1.0), (0, 4, 1.0), (0, 7, 3.0), (0, 2, 1.0)]), 3)
        assert found.select("item_row", "rank").rows() == [(7, 1), (2, 2), (4, 3)]

    @given(ROWS, st.integers(1, 12))
    def test_equals_sorting_each_users_rows(self, rows, k):
        found = top_k(scored(rows), k)
        expected = []
        for user in range(4):
            mine = sorted((row for row in rows if row[0] == user), key=lambda row: (-row[2], row[1]))
            expected += [(*row, place) for place, row in enumerate(mine[:k], start=1)]
        assert found.select("user_row", "item_row", "score", "rank").rows() == expected
        assert found.schema["rank"] == pl.Int32

    def test_further_columns_stay(self):
        found = top_k(scored([(0, 1, 1.0), (0, 2, 2.0)]).with_columns(source=pl.col("item_row") * 10), 1)
        assert found["source"].to_list() == [20]


class TestWithoutRules:
    @given(ROWS, st.integers(1, 12))
    def test_the_order_is_the_rankers_exactly(self, rows, k):
        frame = scored(rows).with_columns(source=pl.col("item_row") * 10)
        found = listed(frame, k, rules_of())
        assert_frame_equal(found.drop("rules"), top_k(frame, k))
        assert found["rules"].null_count() == found.height

    def test_scores_that_differ_in_the_last_bit_keep_their_order(self):
        best = np.nextafter(1.0, 2.0)
        found = listed(scored([(0, 3, best), (0, 1, 1.0), (0, 0, -1e9)]), 3, rules_of())
        assert found["item_row"].to_list() == [3, 1, 0]


class TestDiversity:
    def vectors(self) -> np.ndarray:
        """Items 0 to 4 point one way, 5 to 9 another."""
        made = np.zeros((N_ITEMS, 2), dtype=np.float32)
        made[:5, 0] = made[5:, 1] = 1.0
        return made

    def test_the_likes_of_those_above_come_later(self):
        found = listed(falling(), 4, rules_of(vectors=self.vectors(), diversity=0.5))
        assert found["item_row"].to_list() == [0, 5, 1, 2]
        assert found["rules"].to_list() == [None, "diversity", None, None]
        assert found["score"].to_list() == [0.0, -5.0, -1.0, -2.0]
        assert found["rank"].to_list() == [1, 2, 3, 4]

    def test_items_whose_vectors_mean_nothing_are_like_no_other(self):
        comparable = np.arange(N_ITEMS) != 1
        found = listed(falling(), 4, rules_of(vectors=self.vectors(), comparable=comparable, diversity=0.5))
        assert found["item_row"].to_list() == [0, 1, 5, 2]

    def test_equals_the_formula(self):
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(N_ITEMS, 3)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        score = rng.normal(size=N_ITEMS)
        frame = scored([(0, item, float(score[item])) for item in range(N_ITEMS)])
        for weight in (0.2, 0.5, 0.9):
            found = listed(frame, 6, rules_of(vectors=vectors, diversity=weight))["item_row"].to_list()
            relevance = (score - score.min()) / (score.max() - score.min())
            expected: list[int] = []
            while len(expected) < 6:
                worth = {
                    item: (1 - weight) * relevance[item]
                    - weight * max([0.0, *(float(vectors[item] @ vectors[other]) for other in expected)])
                    for item in set(range(N_ITEMS)) - set(expected)
                }
                expected.append(max(worth, key=worth.__getitem__))
            assert found == expected

    def test_lists_grow_more_diverse_with_the_knob(self):
        rng = np.random.default_rng(1)
        vectors = rng.normal(size=(40, 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rules = [rules_of(vectors=vectors, diversity=d) for d in (0.0, 0.4, 0.9)]
        chosen = [vectors[listed(falling(40), 8, rule)["item_row"].to_numpy()] for rule in rules]
        likeness = [float((mine @ mine.T - 2.0 * np.eye(8)).max(axis=1).mean()) for mine in chosen]
        assert all(more > less for more, less in pairwise(likeness))


class TestCaps:
    def test_no_value_has_more_items_than_its_cap_and_nulls_have_none(self):
        codes = np.array([0, 0, 0, 0, 1, 1, 1, -1, -1, -1])
        found = listed(falling(), 7, rules_of(caps=((codes, 2),)))
        assert found["item_row"].to_list() == [0, 1, 4, 5, 7, 8, 9]
        assert found["rules"].to_list() == [None, None, "caps", "caps", "caps", "caps", "caps"]

    def test_several_caps_hold_at_once_and_lists_may_end_early(self):
        first, second = np.arange(N_ITEMS) % 2, np.arange(N_ITEMS) // 5
        found = listed(falling(), 10, rules_of(caps=((first, 2), (second, 3))))
        assert found["item_row"].to_list() == [0, 1, 2, 5]
        assert found["rank"].to_list() == [1, 2, 3, 4]

    def test_pinned_items_count_and_are_not_held_back(self):
        codes = np.zeros(N_ITEMS, dtype=np.int64)
        found = listed(falling(), 3, rules_of(caps=((codes, 1),)), pins=pins_of((0, 3, 2), (0, 4, 3)))
        assert found["item_row"].to_list() == [3, 4]


class TestBoosts:
    def test_lift_the_worst_candidate_too(self):
        factors = np.ones(N_ITEMS)
        factors[9] = 1e6
        found = listed(falling(), 2, rules_of(boosts=factors))
        assert found.select("item_row", "rules").rows() == [(9, "boosted"), (0, None)]

    def test_a_factor_acts_on_the_scaled_relevance(self):
        factors = np.ones(N_ITEMS)
        factors[3], factors[0] = 1.6, 0.1
        found = listed(falling(), 4, rules_of(boosts=factors))
        assert found["item_row"].to_list() == [3, 1, 2, 4]
        assert found["rules"].to_list() == ["boosted", None, None, None]
        last = listed(falling(), 10, rules_of(boosts=factors))
        assert last.filter(pl.col("item_row") == 0)["rules"].to_list() == ["demoted"]

    def test_freshness_names_those_that_it_moved(self):
        fresh = np.full(N_ITEMS, 0.5)
        fresh[4] = 1.0
        found = listed(falling(), 3, rules_of(freshness=fresh))
        assert found["item_row"].to_list() == [4, 0, 1]
        assert found["rules"].to_list() == ["freshness", None, None]


class TestPins:
    def test_a_pinned_item_stands_where_it_was_pinned_and_nowhere_else(self):
        two = pl.concat([falling(), falling(user=1)])
        found = listed(two, 4, rules_of(), pins=pins_of((0, 0, 3), (0, 9, 1)))
        assert found["item_row"].to_list() == [9, 1, 0, 2, 0, 1, 2, 3]
        assert found["rules"].to_list() == ["pinned", None, "pinned", None, *[None] * 4]

    def test_one_that_is_no_candidate_has_no_score(self):
        found = listed(falling(3), 3, rules_of(), pins=pins_of((0, 7, 2)))
        assert found["item_row"].to_list() == [0, 7, 1]
        assert found["score"].to_list() == [0.0, None, -1.0]

    def test_beyond_the_end_of_the_list_it_comes_last(self):
        found = listed(falling(2), 9, rules_of(), pins=pins_of((0, 7, 8)))
        assert found.select("item_row", "rank").rows() == [(0, 1), (1, 2), (7, 3)]


class TestCalibration:
    def test_category_shares_follow_the_history(self):
        categories = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
        found = listed(falling(), 4, rules_of(categories=categories, calibration=0.9), history=history_of(0, 0, 6, 7))
        assert sorted(found["item_row"].to_list()) == [0, 1, 5, 6]
        assert "calibration" in found["rules"].to_list()

    def test_a_user_without_history_keeps_the_order(self):
        found = listed(falling(), 4, rules_of(calibration=0.5))
        assert found["item_row"].to_list() == [0, 1, 2, 3]
        assert found["rules"].null_count() == 4

    @pytest.mark.parametrize("weight", [0.3, 0.6, 0.95])
    def test_equals_the_greedy_search_with_the_divergence_itself(self, weight):
        rng = np.random.default_rng(3)
        categories = rng.integers(0, 4, N_ITEMS)
        history = rng.integers(0, N_ITEMS, 12).tolist()
        score = rng.normal(size=N_ITEMS)
        frame = scored([(0, item, float(score[item])) for item in range(N_ITEMS)])
        relevance = (score - score.min()) / (score.max() - score.min())
        wanted = np.bincount(categories[history], minlength=4) / len(history)

        def divergence(chosen: list[int]) -> float:
            shown = np.bincount(categories[chosen], minlength=4) / len(chosen)
            smoothed = (1 - SMOOTHING) * shown + SMOOTHING * wanted
            inside = wanted > 0
            return float((wanted[inside] * np.log(wanted[inside] / smoothed[inside])).sum())

        expected: list[int] = []
        while len(expected) < 6:
            worth = {
                item: (1 - weight) * relevance[item] - weight * divergence([*expected, item])
                for item in range(N_ITEMS)
                if item not in expected
            }
            expected.append(max(worth, key=worth.__getitem__))
        found = listed(frame, 6, rules_of(categories=categories, calibration=weight), history=history_of(*history))
        assert found["item_row"].to_list() == expected


def test_a_thousand_users_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    n_users, n_candidates, n_items = 1000, 300, 3000
    vectors = rng.normal(size=(n_items, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    frame = pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), n_candidates),
            "item_row": np.tile(np.arange(n_candidates, dtype=np.int32), n_users) * 7,
            "score": rng.normal(size=n_users * n_candidates),
        }
    )
    start = time.process_time()
    found = listed(frame, 10, rules_of(vectors=vectors, diversity=0.3))
    assert found.height == 10 * n_users
    assert time.process_time() - start < 2.0
