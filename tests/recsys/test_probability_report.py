"""Every number equals scikit-learn's."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from recsys.probability_report import (
    ProbabilityReport,
    accuracy,
    auc,
    best_threshold,
    brier,
    f1,
    precision,
    recall,
    reliability,
    report,
)


def drawn(seed: int, n: int = 500, digits: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with ties, weights."""
    rng = np.random.default_rng(seed)
    probabilities = np.clip(np.round(rng.beta(1, 3, n), digits), 0.001, 0.999)
    return (rng.random(n) < probabilities).astype(float), probabilities, rng.uniform(0.5, 20, n)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_equal_scikit_learn(seed: int, weighted: bool) -> None:
    labels, probabilities, weights = drawn(seed)
    weights = weights if weighted else np.ones(500)
    found = report(labels, probabilities, weights, n_users=7, threshold=0.3, method="platt", horizon="within 7d")
    predicted = probabilities >= 0.3
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted, sample_weight=weights))
    assert found.precision == pytest.approx(metrics.precision_score(labels, predicted, sample_weight=weights))
    assert found.recall == pytest.approx(metrics.recall_score(labels, predicted, sample_weight=weights))
    assert found.f1 == pytest.approx(metrics.f1_score(labels, predicted, sample_weight=weights))
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, probabilities, sample_weight=weights))
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, probabilities, sample_weight=weights))
    assert found.brier == pytest.approx(metrics.brier_score_loss(labels, probabilities, sample_weight=weights))
    assert found.base_rate == pytest.approx(np.average(labels, weights=weights))
    assert (found.n, found.n_users, found.threshold, found.method, found.horizon) == (500, 7, 0.3, "platt", "within 7d")


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 6]))
def test_the_reliability_curve_equals_scikit_learn(seed: int, digits: int) -> None:
    labels, probabilities, _ = drawn(seed, 200, digits)
    shares, means = calibration_curve(labels, probabilities, n_bins=10, strategy="quantile")
    found = reliability(labels, probabilities, np.ones(200))
    assert [bin_[0] for bin_ in found] == pytest.approx(list(means))
    assert [bin_[1] for bin_ in found] == pytest.approx(list(shares))
    assert sum(bin_[2] for bin_ in found) == 200


def test_bins_hold_rows_and_weigh_what_is_in_them() -> None:
    labels, probabilities = np.array([0.0, 1.0]), np.array([0.2, 0.4])
    assert reliability(labels, probabilities, np.array([1.0, 3.0]), n_bins=1) == ((pytest.approx(0.35), 0.75, 2),)


@given(st.integers(0, 10_000))
def test_no_other_threshold_has_a_better_f1(seed: int) -> None:
    labels, probabilities, weights = drawn(seed, 60, 1)
    labels[0] = 1.0
    best = f1(labels, probabilities >= best_threshold(labels, probabilities, weights), weights)
    assert best >= max(f1(labels, probabilities >= value, weights) for value in np.unique(probabilities)) - 1e-12


def test_shares_of_nothing() -> None:
    labels, weights, nobody = np.zeros(3), np.ones(3), np.zeros(3, dtype=bool)
    assert precision(labels, nobody, weights) == recall(labels, nobody, weights) == f1(labels, nobody, weights) == 0.0
    assert accuracy(labels, nobody, weights) == 1.0
    assert brier(labels, np.full(3, 0.5), weights) == 0.25
    assert np.isnan(auc(labels, np.full(3, 0.5), weights))


def test_a_report_survives_json() -> None:
    made = report(*drawn(0), n_users=7, threshold=0.3, method="platt", horizon="within 7d")
    assert ProbabilityReport.from_dict(json.loads(json.dumps(asdict(made)))) == made
