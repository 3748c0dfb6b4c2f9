"""Who comes back: features lie strictly before their moment, cut-offs never meet, and habits are found."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ranking.probability import HeadConfig
from recsys import Recommender, activity
from recsys.activity import DAY, ActivityModel, activity_features, cut_offs, horizon_seconds, labelled
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig, NotFitted, UnknownUsers

CONFIG = HeadConfig(n_trees=30, min_leaf_rows=20, n_threads=1)
WEEK = 7 * DAY
END = 100 * DAY


def habits(n_users: int = 240, seed: int = 0) -> pl.DataFrame:
    """A third comes every other day, a third came so until it left, a third comes about once in twenty days."""
    rng = np.random.default_rng(seed)
    parts = []
    for user in range(n_users):
        gap = 20.0 if user % 3 == 2 else 2.0
        times = np.cumsum(rng.exponential(gap * DAY, size=400)) + rng.uniform(0, DAY)
        stop = rng.uniform(5, 60) * DAY if user % 3 == 1 else END
        times = np.append(rng.uniform(0, DAY), times[times < stop])
        parts.append(pl.DataFrame({"user_id": [f"u{user:03d}"] * len(times), "seconds": times}))
    events = pl.concat(parts)
    n = events.height
    return events.with_columns(
        item_row=pl.Series(rng.integers(50, size=n), dtype=pl.Int32),
        event_row=pl.Series(rng.integers(2, size=n), dtype=pl.Int16),
    ).sort("seconds", "user_id")


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return habits()


@pytest.fixture(scope="module")
def model(events: pl.DataFrame) -> ActivityModel:
    return ActivityModel.learn(events, END, "7d", CONFIG, seed=0)


def test_habits_are_found(model: ActivityModel, events: pl.DataFrame) -> None:
    users = pl.Series("user_id", ["u002", "u000", "u001"])
    found = model.predict(events, users, END)
    assert found["user_id"].to_list() == users.to_list()
    rare, often, gone = found["probability"]
    assert often > 0.9
    assert gone < 0.4
    assert gone < rare < often


def test_the_report_is_of_the_last_horizon(model: ActivityModel, events: pl.DataFrame) -> None:
    last = labelled(events, END - WEEK, WEEK)
    assert model.report.n == model.report.n_users == last.height
    assert model.report.base_rate == pytest.approx(last["label"].mean())
    assert model.report.auc > 0.9
    assert model.report.log_loss < 0.4
    assert model.report.horizon == "any event within 7d"
    assert sum(n for *_, n in model.report.reliability) == last.height


def test_learning_again_gives_the_same(model: ActivityModel, events: pl.DataFrame) -> None:
    again = ActivityModel.learn(events, END, "7d", CONFIG, seed=0)
    assert again.report == model.report
    users = events["user_id"].unique().sort()
    assert_frame_equal(again.predict(events, users, END), model.predict(events, users, END))


@given(st.integers(0, 1000), st.floats(20.0, 99.0))
@settings(max_examples=15, deadline=None)
def test_rows_at_or_after_the_moment_change_no_feature(seed: int, day: float) -> None:
    events, moment = habits(12), day * DAY
    rng = np.random.default_rng(seed)
    late = events.filter(pl.col("seconds") >= moment).sample(fraction=0.5, seed=seed)
    late = late.with_columns(user_id=pl.lit("u001"), item_row=pl.lit(3, dtype=pl.Int32))
    at_once = pl.DataFrame({"user_id": ["u001", "new"], "seconds": [moment] * 2}).with_columns(
        item_row=pl.lit(int(rng.integers(50)), dtype=pl.Int32), event_row=pl.lit(1, dtype=pl.Int16)
    )
    before = events.filter(pl.col("seconds") < moment)
    edited = pl.concat([before, late, at_once])
    assert_frame_equal(activity_features(edited, moment, WEEK), activity_features(events, moment, WEEK))


def test_nothing_at_or_after_the_end_is_learnt_from(model: ActivityModel, events: pl.DataFrame) -> None:
    later = events.with_columns(pl.col("seconds") + END)
    assert ActivityModel.learn(pl.concat([events, later]), END, "7d", CONFIG, seed=0).report == model.report


def test_labels_lie_from_the_cut_off_to_the_end_of_the_horizon() -> None:
    times = {"before": -1.0, "at": 0.0, "inside": WEEK - 1, "end": WEEK}
    rows = [(user, 10 * WEEK + offset) for user, offset in times.items()] + [(user, WEEK) for user in times]
    events = pl.DataFrame(rows, schema=["user_id", "seconds"], orient="row")
    events = events.with_columns(item_row=pl.lit(0, dtype=pl.Int32), event_row=pl.lit(0, dtype=pl.Int16))
    found = labelled(events, 10 * WEEK, WEEK)
    assert dict(found.select("user_id", "label").iter_rows()) == {"at": 1, "before": 0, "end": 0, "inside": 1}


def test_features_by_hand() -> None:
    days_before = [1.5, 1.25, 4.5, 11.5]
    events = pl.DataFrame({"user_id": ["a"] * 4, "seconds": [END - days * DAY for days in days_before]})
    events = events.with_columns(
        item_row=pl.Series([1, 2, 1, 3], dtype=pl.Int32), event_row=pl.Series([1, 0, 0, 0], dtype=pl.Int16)
    )
    found = activity_features(events, END, WEEK).row(0, named=True)
    expected = {
        "recency_days": 1.25, "recency": 1.25 / 7, "tenure": 11.5 / 7, "n_events": 4, "n_items": 3, "n_periods": 2,
        "period_share": 1.0, "n_events_1": 3, "n_events_2": 4, "n_days": 3, "n_days_7d": 2, "gap_mean": 5.0,
        "gap_newest": 3.0, "gap_longest": 7.0, "regularity": np.std([3, 7], ddof=1) / 5, "overdue": 0.25,
        "trend": 4 / 5, "repeat_share": 0.25, "first_kind_share": 0.75, "newest_kind": 0.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_cut_offs_lie_one_horizon_apart_with_history_before_the_first() -> None:
    events = pl.DataFrame({"seconds": [0.0, END]})
    assert cut_offs(events, END, "20d") == [80 * DAY, 60 * DAY, 40 * DAY, 20 * DAY]
    assert len(cut_offs(events, END, "1d")) == activity.MAX_CUTS + 2


def test_many_users_are_drawn_from(events: pl.DataFrame, monkeypatch) -> None:
    monkeypatch.setattr(activity, "MAX_USERS", 150)
    assert ActivityModel.learn(events, END, "7d", CONFIG, seed=0).report.n <= 150


@pytest.mark.parametrize("horizon", ["7", "d", "0d", "-7d", "7.5d", "7 d", "7days", "", 7, None])
def test_malformed_horizons_are_refused(horizon: object) -> None:
    with pytest.raises(InvalidConfig, match=r"horizon=.* must be a whole number and one of h, d, w"):
        horizon_seconds(horizon)


def test_horizons_in_hours_days_and_weeks() -> None:
    assert [horizon_seconds(text) for text in ("12h", "7d", "2w")] == [DAY / 2, WEEK, 2 * WEEK]


def test_a_horizon_that_the_data_cannot_tell_is_refused(events: pl.DataFrame) -> None:
    with pytest.raises(InvalidConfig, match=r"horizon='5w': the interactions cover 100\.0 days and it needs 140\.0"):
        ActivityModel.learn(events, END, "5w", CONFIG, seed=0)
    with pytest.raises(InvalidConfig, match=r"the interactions cover 0\.0 days"):
        ActivityModel.learn(events.clear(), END, "7d", CONFIG, seed=0)
    with pytest.raises(InvalidConfig, match="of the 30 report rows have an event within it; at least 20 with and 20 "):
        ActivityModel.learn(habits(30), END, "7d", CONFIG, seed=0)


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, events: pl.DataFrame) -> Recommender:
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert, "precision": "fp32"},
            "contrastive": {"encoder_steps": 0, "tower_max_steps": 2},
            "heads": {"n_trees": 30, "n_threads": 1},
            "renew_towers": False,
            "probabilities": False,
            "n_interest": 0,
            "device": "cpu",
            "progress": False,
        }
    )
    interactions = events.select("user_id", item_id=pl.col("item_row").cast(pl.Int64), timestamp="seconds")
    items = pl.DataFrame({"item_id": range(50), "title": [f"thing {row}" for row in range(50)]})
    return Recommender(config).fit(interactions, items)


def test_the_door(fitted: Recommender) -> None:
    found = fitted.predict_activity(["u001", "u000", "u001"])
    assert found.columns == ["user_id", "probability"]
    assert found["user_id"].to_list() == ["u001", "u000"]
    gone, often = found["probability"]
    assert gone < often
    assert fitted.activity_report("7d").horizon == "any event within 7d"
    assert list(fitted._activity) == ["7d"]
    with pytest.raises(UnknownUsers, match="1 user was not in the interactions at fit: 'nobody'"):
        fitted.predict_activity(["nobody"])
    with pytest.raises(InvalidConfig, match="must be a whole number and one of h, d, w"):
        fitted.predict_activity(["u001"], "soon")
    with pytest.raises(NotFitted, match="has not learnt anything yet"):
        Recommender().activity_report()


def test_a_loaded_recommender_learns_the_same(fitted: Recommender, tmp_path) -> None:
    fitted.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    assert_frame_equal(loaded.predict_activity(fitted.users), fitted.predict_activity(fitted.users))


def test_real_baskets(data_folder) -> None:
    """On The Complete Journey the probabilities order households well and are close to what happened."""
    table = pl.read_parquet(sorted((data_folder / "complete-journey").glob("interactions.parquet")))
    seconds = pl.col("timestamp").cast(pl.Float64)
    rows = table.select("user_id", seconds=seconds, item_row=pl.col("item_id").rank("dense").cast(pl.Int32))
    rows = rows.with_columns(event_row=pl.lit(0, dtype=pl.Int16))
    found = ActivityModel.learn(rows, rows["seconds"].max() + 1.0, "2w", HeadConfig(n_threads=1), seed=0).report
    assert found.auc > 0.8
    assert found.log_loss < 0.55
