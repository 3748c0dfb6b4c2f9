"""How good probabilities are: pure functions of labels, probabilities and weights, and the report made of them.

Owns the definition of every number. A weight says how many rows of the population a row stands for; with equal weights
every number equals scikit-learn's of the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ranking.probability import weighted_log_loss

FloatArray = npt.NDArray[np.float64]

N_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityReport:
    """What probabilities were worth on rows that nothing was learnt from.

    Attributes:
        n: rows measured.
        n_users: users they belong to.
        base_rate: share of positives; this and all that follows is weighted to the population.
        threshold: rows of at least this probability count as predicted: the best F1 on the calibration rows.
        accuracy: share of rows predicted rightly.
        precision: share of positives among the predicted; 0 where nothing is predicted.
        recall: share of the positives that are predicted; 0 without positives.
        f1: harmonic mean of the two.
        auc: chance that a positive has a higher probability than a negative; NaN with one label only.
        log_loss: mean negative log-likelihood, in nats.
        brier: mean squared distance of probability and label.
        reliability: (mean probability, share of positives, rows) of bins with about equally many rows, ascending.
        method: how the head was calibrated, "isotonic" or "platt".
        horizon: what the probability is of, in words.
    """

    n: int
    n_users: int
    base_rate: float
    threshold: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    auc: float
    log_loss: float
    brier: float
    reliability: tuple[tuple[float, float, int], ...]
    method: str
    horizon: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` and JSON made of a report."""
        bins = tuple((float(mean), float(share), int(n)) for mean, share, n in values["reliability"])
        return cls(**{**values, "reliability": bins})


def report(
    labels: FloatArray,
    probabilities: FloatArray,
    weights: FloatArray,
    *,
    n_users: int,
    threshold: float,
    method: str,
    horizon: str,
) -> ProbabilityReport:
    """Every number at once.

    Args:
        labels: (n,), 0 or 1.
        probabilities: (n,), in (0, 1).
        weights: (n,), above 0.
        n_users: users that the rows belong to.
        threshold: see `ProbabilityReport`.
        method: see `ProbabilityReport`.
        horizon: see `ProbabilityReport`.
    """
    predicted = probabilities >= threshold
    return ProbabilityReport(
        n=len(labels),
        n_users=n_users,
        base_rate=float(np.average(labels, weights=weights)),
        threshold=threshold,
        accuracy=accuracy(labels, predicted, weights),
        precision=precision(labels, predicted, weights),
        recall=recall(labels, predicted, weights),
        f1=f1(labels, predicted, weights),
        auc=auc(labels, probabilities, weights),
        log_loss=weighted_log_loss(labels, probabilities, weights),
        brier=brier(labels, probabilities, weights),
        reliability=reliability(labels, probabilities, weights),
        method=method,
        horizon=horizon,
    )


def accuracy(labels: FloatArray, predicted: npt.NDArray[np.bool_], weights: FloatArray) -> float:
    """Share of rows predicted rightly."""
    return float(np.average((labels > 0) == predicted, weights=weights))


def precision(labels: FloatArray, predicted: npt.NDArray[np.bool_], weights: FloatArray) -> float:
    """Share of positives among the predicted; 0 where nothing is predicted."""
    return _share(weights[predicted & (labels > 0)].sum(), weights[predicted].sum())


def recall(labels: FloatArray, predicted: npt.NDArray[np.bool_], weights: FloatArray) -> float:
    """Share of the positives that are predicted; 0 without positives."""
    return _share(weights[predicted & (labels > 0)].sum(), weights[labels > 0].sum())


def f1(labels: FloatArray, predicted: npt.NDArray[np.bool_], weights: FloatArray) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is both predicted and positive."""
    both = weights[predicted & (labels > 0)].sum()
    return _share(2 * both, weights[predicted].sum() + weights[labels > 0].sum())


def best_threshold(labels: FloatArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """The probability at or above which predicting gives the highest F1; of equals the highest.

    Args:
        labels: (n,), 0 or 1, at least one 1.
        probabilities: (n,).
        weights: (n,), above 0.
    """
    order = np.argsort(-probabilities, kind="stable")
    both = np.cumsum((weights * labels)[order])
    scores = 2 * both / (np.cumsum(weights[order]) + (weights * labels).sum())
    descending = probabilities[order]
    ends = np.flatnonzero(np.append(np.diff(descending) != 0, True))  # rows of one probability are predicted together
    return float(descending[ends[scores[ends].argmax()]])


def auc(labels: FloatArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Chance that a positive is above a negative, ties counting half; NaN where one of them is missing.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    values, place = np.unique(probabilities, return_inverse=True)
    positive = np.bincount(place, weights * labels, minlength=len(values))
    negative = np.bincount(place, weights * (1 - labels), minlength=len(values))
    below = np.cumsum(negative) - negative / 2
    pairs = positive.sum() * negative.sum()
    return float((positive * below).sum() / pairs) if pairs > 0 else float("nan")


def brier(labels: FloatArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Mean squared distance of probability and label.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", the half for one of two outcomes.
    """
    return float(np.average((probabilities - labels) ** 2, weights=weights))


def reliability(
    labels: FloatArray, probabilities: FloatArray, weights: FloatArray, n_bins: int = N_BINS
) -> tuple[tuple[float, float, int], ...]:
    """(mean probability, share of positives, rows) of bins between the quantiles of the probabilities, ascending.

    Bins hold about equally many rows whatever their weights, rows of one probability share a bin, and empty bins are
    left out; means and shares are weighted. With equal weights it is scikit-learn's `calibration_curve` with
    `strategy="quantile"`.
    """
    edges = np.quantile(probabilities, np.linspace(0, 1, n_bins + 1)[1:-1])
    place = np.searchsorted(edges, probabilities)
    total, mass, hits = (
        np.bincount(place, column, minlength=n_bins) for column in (weights, weights * probabilities, weights * labels)
    )
    n_rows = np.bincount(place, minlength=n_bins)
    return tuple(
        (float(mass[bin_] / total[bin_]), float(hits[bin_] / total[bin_]), int(n_rows[bin_]))
        for bin_ in np.flatnonzero(n_rows)
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
