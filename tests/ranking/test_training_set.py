from __future__ import annotations

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ranking.training_set import label_candidates

INT = {"user_row": pl.Int32, "item_row": pl.Int32}


def candidates_of(n_users: int, n_items: int = 10) -> pl.DataFrame:
    pairs = [(user, item) for user in range(n_users) for item in range(n_items)]
    return pl.DataFrame(pairs, schema=INT, orient="row").with_columns(score=pl.int_range(pl.len()).cast(pl.Float32))


def labels_of(*pairs: tuple[int, int], grade: int = 1, weight: float = 1.0) -> pl.DataFrame:
    frame = pl.DataFrame(pairs, schema=INT, orient="row")
    return frame.with_columns(grade=pl.lit(grade, dtype=pl.Int8), weight=pl.lit(weight, dtype=pl.Float32))


def test_labels_are_one_for_taken_candidates_and_zero_for_the_others():
    made = label_candidates(candidates_of(2), labels_of((0, 3), (0, 5), (1, 9)), seed=0)
    assert made.rows.schema["label"] == pl.Int8
    assert set(made.rows.filter(label=1).select("user_row", "item_row").rows()) == {(0, 3), (0, 5), (1, 9)}
    assert made.rows.filter(label=0).height == 17
    assert made.rows["weight"].unique().to_list() == [1.0]
    assert_frame_equal(made.rows.drop("label", "weight").sort("user_row", "item_row"), candidates_of(2))


def test_repeated_labels_count_once():
    made = label_candidates(candidates_of(1), labels_of((0, 3), (0, 3)), seed=0)
    assert made.rows.height == 10
    assert made.rows["label"].sum() == 1


def test_the_strongest_event_of_a_pair_is_its_label():
    labels = pl.concat([labels_of((0, 3), (0, 4)), labels_of((0, 3), grade=3)])
    made = label_candidates(candidates_of(1), labels, seed=0)
    assert dict(made.rows.filter(pl.col("label") > 0).select("item_row", "label").iter_rows()) == {3: 3, 4: 1}


def test_rows_of_a_user_weigh_what_the_found_items_weigh_on_average():
    repeated = [labels_of((0, 3), weight=0.5), labels_of((0, 3), weight=4.0)]
    rest = [labels_of((0, 4), weight=1.0), labels_of((0, 77), weight=90.0), labels_of((1, 5), weight=0.0)]
    made = label_candidates(candidates_of(2), pl.concat([*repeated, *rest]), seed=0)
    assert made.rows["weight"].dtype == pl.Float32
    assert dict(made.rows.select("user_row", "weight").unique().iter_rows()) == {0: 2.5, 1: 0.0}


def test_taken_items_that_are_no_candidates_are_not_added():
    made = label_candidates(candidates_of(1), labels_of((0, 3), (0, 77)), seed=0)
    assert 77 not in made.rows["item_row"]


def test_users_that_teach_nothing_are_dropped_and_counted():
    everything = [(3, item) for item in range(10)]  # user 3 took all, 1 none of them, 2 has no labels, 9 no candidates
    made = label_candidates(candidates_of(4), labels_of((0, 3), (1, 77), (9, 1), *everything), seed=0)
    assert made.rows["user_row"].unique().to_list() == [0]
    assert (made.n_users, made.n_dropped) == (1, 3)


def test_rows_of_a_user_lie_together_in_order_of_the_users():
    made = label_candidates(candidates_of(20), labels_of(*((user, 0) for user in range(20))), seed=0)
    assert made.rows["user_row"].is_sorted()
    assert made.n_users == 20


def test_rows_are_shuffled_so_that_the_taken_item_is_not_always_first():
    made = label_candidates(candidates_of(200), labels_of(*((user, 0) for user in range(200))), seed=0)
    places = made.rows.with_columns(place=pl.int_range(pl.len()).over("user_row")).filter(label=1)["place"]
    assert set(places) == set(range(10))
    assert 4.0 < places.mean() < 5.0  # 4.5 where every place is as likely as another


def test_the_same_seed_gives_the_same_rows():
    frames = [label_candidates(candidates_of(5), labels_of((0, 1), (4, 2)), seed=seed).rows for seed in (7, 7, 8)]
    assert_frame_equal(frames[0], frames[1])
    assert not frames[0].equals(frames[2])


@pytest.mark.parametrize(("n_users", "labels"), [(0, labels_of((0, 1))), (3, labels_of())])
def test_may_be_empty(n_users, labels):
    made = label_candidates(candidates_of(n_users), labels, seed=0)
    assert made.rows.is_empty()
    assert (made.n_users, made.n_dropped) == (0, labels.height)
