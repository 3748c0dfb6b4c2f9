"""Calibrated heads: what they refuse, that calibration calibrates, and that a file gives the same numbers back."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ranking.probability import (
    Calibration,
    HeadConfig,
    ProbabilityHead,
    fit_calibration,
    isotonic,
    platt,
    weighted_log_loss,
)

CONFIG = HeadConfig(n_trees=40, min_leaf_rows=10, n_threads=1)
FEATURES = ["a", "b"]


def rows(seed: int, n: int = 2000, **columns: object) -> pl.DataFrame:
    """Labels whose chance is a logistic function of `a`; `b` is noise and sometimes null."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    label = rng.random(n) < 1 / (1 + np.exp(2 - 1.5 * a))
    frame = pl.DataFrame({"a": a, "b": b, "label": label.astype(np.int8), "user_row": np.arange(n) // 4})
    unknown = pl.Series(rng.random(n) < 0.1)
    return frame.with_columns(b=pl.when(unknown).then(None).otherwise("b"), weight=pl.lit(1.0)).with_columns(**columns)


@pytest.fixture(scope="module")
def head() -> ProbabilityHead:
    return ProbabilityHead(CONFIG, seed=0).fit(rows(0), rows(1), FEATURES).calibrate(rows(2))


def test_probabilities_are_what_happens(head: ProbabilityHead) -> None:
    fresh = rows(3, 4000)
    found = head.predict(fresh)
    truth = 1 / (1 + np.exp(2 - 1.5 * fresh["a"].to_numpy()))
    assert np.abs(found - truth).mean() < 0.06
    assert found.mean() == pytest.approx(fresh["label"].mean(), abs=0.02)
    assert (found > 0).all()
    assert (found < 1).all()


def test_weights_stand_for_rows_that_were_not_drawn() -> None:
    def thinned(seed: int) -> pl.DataFrame:
        frame = rows(seed, 6000)
        kept = (frame["label"] == 1) | pl.Series(np.random.default_rng(seed).random(frame.height) < 0.2)
        return frame.with_columns(weight=pl.when(pl.col("label") == 1).then(1.0).otherwise(5.0)).filter(kept)

    head = ProbabilityHead(CONFIG, seed=0).fit(thinned(0), thinned(1), FEATURES).calibrate(thinned(2))
    fresh = rows(3, 4000)
    assert head.predict(fresh).mean() == pytest.approx(fresh["label"].mean(), abs=0.02)


def test_calibration_repairs_a_window_in_which_less_is_taken() -> None:
    head = ProbabilityHead(CONFIG, seed=0).fit(rows(0), rows(1), FEATURES)
    rng = np.random.default_rng(5)
    later = rows(4, 4000).with_columns(pl.col("label") * pl.Series((rng.random(4000) < 0.5).astype(np.int8)))
    before = 1 / (1 + np.exp(-head.logits(later)))
    after = head.calibrate(later.head(2000)).predict(later.tail(2000))
    share = later.tail(2000)["label"].mean()
    assert before.mean() > 1.6 * share
    assert after.mean() == pytest.approx(share, abs=0.02)


def test_platt_is_taken_for_a_logistic_curve_and_isotonic_for_steps() -> None:
    rng = np.random.default_rng(0)
    logits, ones, groups = rng.normal(size=4000) * 2, np.ones(4000), np.arange(4000) // 2
    curve = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    steps = (rng.random(4000) < np.where(np.abs(logits) < 1.5, 0.5, np.where(logits > 0, 0.55, 0.01))).astype(
        np.float64
    )
    assert fit_calibration(logits, curve, ones, groups).method == "platt"
    assert fit_calibration(logits, steps, ones, groups).method == "isotonic"


@pytest.mark.parametrize("fit", [isotonic, platt])
def test_calibrations_never_fall_and_never_reach_the_ends(fit) -> None:
    logits = np.linspace(-6, 6, 300)
    labels = (logits > 0).astype(np.float64)  # separable: the honest answer is still not 0 or 1
    calibration = fit(logits, labels, np.ones(300))
    found = calibration(np.linspace(-50, 50, 1000))
    assert (np.diff(found) >= 0).all()
    assert (found > 0).all()
    assert (found < 1).all()
    assert np.isfinite(weighted_log_loss(1 - labels, calibration(logits), np.ones(300)))


def test_the_ends_of_isotonic_follow_the_rule_of_succession() -> None:
    labels = np.repeat([0.0, 1.0], [8, 18])
    calibration = isotonic(labels * 2 - 1, labels, np.ones(26))
    assert calibration(np.array([-9.0, 9.0])) == pytest.approx([1 / 10, 1 - 1 / 20])


def test_a_head_that_orders_the_wrong_way_is_flattened_not_turned() -> None:
    logits = np.linspace(-2, 2, 200)
    calibration = platt(logits, (logits < 0).astype(np.float64), np.ones(200))
    assert calibration.x == (0.0,)


def test_saved_and_loaded_heads_answer_alike(head: ProbabilityHead, tmp_path: Path) -> None:
    head.save(tmp_path / "head")
    loaded = ProbabilityHead.load(tmp_path / "head", CONFIG, seed=0)
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == ["head.json", "model.txt"]
    assert loaded.method == head.method
    np.testing.assert_array_equal(loaded.predict(rows(3)), head.predict(rows(3)))


def test_the_same_seed_gives_the_same_head(head: ProbabilityHead) -> None:
    again = ProbabilityHead(CONFIG, seed=0).fit(rows(0), rows(1), FEATURES).calibrate(rows(2))
    np.testing.assert_array_equal(again.predict(rows(3)), head.predict(rows(3)))


def test_rare_labels_do_not_overshoot() -> None:
    rng = np.random.default_rng(0)

    def rare(n: int) -> pl.DataFrame:
        frame = pl.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "user_row": np.arange(n)})
        label = rng.random(n) < np.where(frame["a"].to_numpy() > 1.5, 0.2, 0.0)
        return frame.with_columns(label=pl.Series(label.astype(np.int8)), weight=pl.Series(np.where(label, 1.0, 100.0)))

    head = ProbabilityHead(CONFIG, seed=0).fit(rare(4000), rare(2000), FEATURES)
    fresh = rare(2000)
    chance = 1 / (1 + np.exp(-head.logits(fresh)))
    assert np.average(chance, weights=fresh["weight"]) < 2 * np.average(fresh["label"], weights=fresh["weight"])


def test_no_rows_no_probabilities(head: ProbabilityHead) -> None:
    assert head.predict(rows(0).clear()).shape == (0,)


def test_head_refuses_what_it_cannot_learn_from(head: ProbabilityHead) -> None:
    fresh = ProbabilityHead(CONFIG, seed=0)
    with pytest.raises(ValueError, match="there are no features"):
        fresh.fit(rows(0), rows(1), [])
    with pytest.raises(ValueError, match=r"1 feature columns are missing, first: \['c'\]"):
        fresh.fit(rows(0), rows(1), ["a", "c"])
    with pytest.raises(ValueError, match="2000 rows have a label other than 0 and 1 or a weight that is not above 0"):
        fresh.fit(rows(0, weight=pl.lit(0.0)), rows(1), FEATURES)
    with pytest.raises(ValueError, match="rows have a label other than 0 and 1"):
        fresh.fit(rows(0), rows(1, label=pl.col("label") * 2), FEATURES)
    with pytest.raises(ValueError, match="2000 rows have one and the same label, both are needed"):
        fresh.fit(rows(0, label=pl.lit(0)), rows(1), FEATURES)
    with pytest.raises(ValueError, match="one and the same label"):
        ProbabilityHead(CONFIG, seed=0).fit(rows(0), rows(1), FEATURES).calibrate(rows(2, label=pl.lit(1)))
    with pytest.raises(ValueError, match="1 feature columns are missing"):
        head.predict(rows(3).drop("a"))


def test_heads_say_what_they_still_need() -> None:
    fresh = ProbabilityHead(CONFIG, seed=0)
    with pytest.raises(RuntimeError, match="not fitted; call fit or load first"):
        fresh.logits(rows(0))
    fresh.fit(rows(0), rows(1), FEATURES)
    with pytest.raises(RuntimeError, match="not calibrated; call fit and calibrate"):
        fresh.predict(rows(0))
    with pytest.raises(RuntimeError, match="not calibrated"):
        _ = fresh.method


def test_calibration_needs_two_users_and_both_labels() -> None:
    with pytest.raises(ValueError, match="3 rows of 1 users with 2 positives; at least two users and both labels"):
        fit_calibration(np.zeros(3), np.array([0.0, 1.0, 1.0]), np.ones(3), np.zeros(3, dtype=np.int64))


def test_isotonic_joins_its_knots_by_straight_lines() -> None:
    assert Calibration("isotonic", (0.0, 2.0), (0.2, 0.6))(np.array([-1.0, 1.0, 5.0])) == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_trees": 0}, "counts must be at least 1"),
        ({"n_leaves": 1}, "n_leaves at least 2"),
        ({"feature_fraction": 0.0}, r"fractions must lie in \(0, 1\]"),
        ({"learning_rate": 0.0}, "learning_rate and max_step must be above 0"),
        ({"max_step": 0.0}, "learning_rate and max_step must be above 0"),
        ({"l2": -1.0}, "l2 and n_threads must be 0 or more"),
    ],
)
def test_config_refuses(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadConfig(**values)
