from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ranking.drift import MAX_SHIFT, TELLING, measure_drift, sample_users, telling_features

FEATURES = ["steady", "moved", "answer"]


def rows_of(n_users: int = 100, *, seed: int, moved: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    n = 20 * n_users
    label = (np.arange(n) % 20 == 0).astype(np.int8)
    return pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), 20),
            "item_row": np.tile(np.arange(20, dtype=np.int32), n_users),
            "label": label,
            "steady": rng.normal(size=n),
            "moved": rng.normal(size=n) + moved,
            "answer": rng.normal(size=n) + 8.0 * label,
        }
    )


def test_rows_alike_cannot_be_told_apart():
    drift = measure_drift(rows_of(seed=0), rows_of(seed=1), FEATURES, seed=0)
    assert 0.45 < drift.auc < 0.55
    assert max(drift.shifts.values()) < MAX_SHIFT


def test_a_feature_that_moved_everywhere_shifts_and_leaves_lists_as_they_were():
    drift = measure_drift(rows_of(seed=0), rows_of(seed=1, moved=2.0), FEATURES, seed=0)
    assert 0.45 < drift.auc < 0.55
    assert next(iter(drift.shifts)) == "moved"
    assert drift.shifts["moved"] > MAX_SHIFT > drift.shifts["steady"]


def test_a_feature_that_orders_lists_otherwise_is_named_first():
    agreeing = [rows_of(seed=seed).with_columns(moved=sign * pl.col("steady")) for seed, sign in ((0, 1), (1, -1))]
    drift = measure_drift(*agreeing, FEATURES, seed=0)
    assert drift.auc > 0.9
    assert set(drift.drivers[:2]) == {"moved", "steady"}
    assert drift.shifts["moved"] < MAX_SHIFT


def test_what_only_tells_the_moment_is_left_out():
    clock = {"user_age": pl.col("user_row"), "item_popularity": pl.col("item_row"), "nothing": pl.lit(None)}
    now = {"user_age": pl.col("user_row") + 1000, "item_popularity": -pl.col("item_row"), "nothing": pl.lit(1.0)}
    names = [*FEATURES, *clock]
    drift = measure_drift(rows_of(seed=0).with_columns(**clock), rows_of(seed=1).with_columns(**now), names, seed=0)
    assert 0.45 < drift.auc < 0.55
    assert not set(drift.drivers) & set(clock)
    alone = measure_drift(rows_of(seed=0).with_columns(**clock), rows_of(seed=1).with_columns(**now), [*clock], seed=0)
    assert (alone.auc, alone.drivers) == (0.5, ())


def test_lists_are_sampled_whole():
    rows = rows_of(seed=0)
    some = sample_users(rows, 210, 0)
    assert some["user_row"].n_unique() == 10
    assert some.height == 200
    assert sample_users(rows, 1, 0)["user_row"].n_unique() == 2
    assert sample_users(rows, 10**6, 0).equals(rows)


def test_nulls_are_left_out_of_a_distance():
    holes = rows_of(seed=1).with_columns(steady=pl.when(pl.col("label") == 0).then("steady"))
    assert measure_drift(rows_of(seed=0), holes, FEATURES, seed=0).shifts["steady"] < 0.1
    nothing = rows_of(seed=1).with_columns(steady=pl.lit(None, dtype=pl.Float64))
    assert measure_drift(rows_of(seed=0), nothing, FEATURES, seed=0).shifts["steady"] == 0.0


def test_of_one_user_is_refused():
    with pytest.raises(ValueError, match="the serving rows have 1 users, two are needed"):
        measure_drift(rows_of(seed=0), rows_of(1, seed=1), FEATURES, seed=0)


def test_a_planted_feature_that_knows_the_future_is_flagged():
    rows = rows_of(seed=0).with_columns(hidden=-pl.col("answer"))
    found = telling_features(rows, [*FEATURES, "hidden"], seed=0)
    assert set(found) == {"answer", "hidden"}
    assert found["answer"] == pytest.approx(roc_auc_score(rows["label"], rows["answer"]))
    assert found["hidden"] == pytest.approx(found["answer"])
    assert min(found.values()) >= TELLING


def test_labels_of_one_kind_give_nothing_away():
    assert telling_features(rows_of(seed=0).with_columns(label=pl.lit(0)), FEATURES, seed=0) == {}
