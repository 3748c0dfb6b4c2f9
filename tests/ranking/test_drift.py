from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ranking.drift import MAX_SHIFT, TELLING, measure_drift, telling_features

FEATURES = ["steady", "moved", "answer"]


def rows_of(n_users: int = 100, *, seed: int, moved: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    n = 20 * n_users
    label = (np.arange(n) % 20 == 0).astype(np.int8)
    return pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), 20),
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


def test_a_feature_that_moved_is_named_first():
    drift = measure_drift(rows_of(seed=0), rows_of(seed=1, moved=2.0), FEATURES, seed=0)
    assert drift.auc > 0.9
    assert drift.drivers[0] == next(iter(drift.shifts)) == "moved"
    assert drift.shifts["moved"] > MAX_SHIFT > drift.shifts["steady"]


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
