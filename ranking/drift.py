"""Do the rows that a ranker is asked about look like those that it learnt from, and does a feature know the answer?

Owns the comparison of two tables of candidate rows. Which rows are compared, and what is done about it, is the
caller's business.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import ks_2samp, rankdata

MAX_SHIFT = 0.3  # Kolmogorov-Smirnov distance of a score between training and serving
MAX_AUC = 0.85  # lists of training and serving should not be told apart so well
TELLING = 0.97  # a feature that alone orders taken above other candidates so well knows more than the past
MAX_ROWS = 20_000
N_TREES = 30
SMALL = 1e-6  # a list without differences has no standard deviation to divide by
N_NAMED = 5


@dataclass(frozen=True, slots=True)
class Drift:
    """How two tables of rows differ.

    Attributes:
        auc: how well a classifier tells unseen training lists from serving lists; 0.5 where they are alike.
        drivers: names of the features that it used most, best first.
        shifts: Kolmogorov-Smirnov distance of each feature, 0..1, largest first; nulls are left out.
    """

    auc: float
    drivers: tuple[str, ...]
    shifts: dict[str, float]


def measure_drift(training: pl.DataFrame, serving: pl.DataFrame, features: list[str], *, seed: int) -> Drift:
    """Adversarial validation: learn to tell the two tables apart on one half of their users, measure on the other.

    The classifier sees each feature in standard deviations from the mean of the user's list, because a ranker compares
    only within lists. Features with one value for a user or one value for an item are left out: a user's age in the
    data or an item's popularity tell the moment, like a clock, and would always give it away.
    Source: Pan et al. 2020, "Adversarial validation approach to concept drift problem in user targeting".

    Args:
        training: `user_row`, `item_row` and the features; whole lists.
        serving: the same columns; users are numbered on their own.
        features: columns to compare.
        seed: of the samples and the classifier.

    Raises:
        ValueError: a table has fewer than two users.
    """
    for name, rows in (("training", training), ("serving", serving)):
        if rows["user_row"].n_unique() < 2:
            raise ValueError(f"drift: the {name} rows have {rows['user_row'].n_unique()} users, two are needed")
    tables = [sample_users(rows, MAX_ROWS, seed) for rows in (training, serving)]
    auc, drivers = _lists_told_apart(tables, _of_pairs(tables, features), seed)
    values = [_matrix(rows, features) for rows in tables]
    shifts = {name: _distance(values[0][:, column], values[1][:, column]) for column, name in enumerate(features)}
    return Drift(auc, drivers, dict(sorted(shifts.items(), key=lambda pair: -pair[1])))


def sample_users(rows: pl.DataFrame, n_rows: int, seed: int) -> pl.DataFrame:
    """About `n_rows` rows: those of users drawn at random, two at least."""
    users = rows["user_row"].unique().sort()
    n_users = max(2, n_rows * len(users) // max(1, rows.height))
    return rows.filter(pl.col("user_row").is_in(users.sample(min(n_users, len(users)), seed=seed).implode()))


def telling_features(rows: pl.DataFrame, features: list[str], *, seed: int, limit: float = TELLING) -> dict[str, float]:
    """Features that alone give the labels away, with the area under their ROC curve (or that of their opposite).

    Args:
        rows: labelled rows: `user_row`, `label` and the features.
        features: columns to look at.
        seed: of the sample.
        limit: areas from here on are suspicious.
    """
    sample = _sample(rows, seed)
    taken = (sample["label"] > 0).to_numpy()
    if not 0 < taken.sum() < len(taken):
        return {}
    values = _matrix(sample, features)
    values = np.where(np.isnan(values), np.finfo(np.float32).min, values)
    areas = {name: _area(values[:, column], taken) for column, name in enumerate(features)}
    return {name: area for name, area in areas.items() if area >= limit}


def _of_pairs(tables: list[pl.DataFrame], features: list[str]) -> list[str]:
    """Features that differ within a list, and for one item between lists, in both tables."""
    found = features
    for rows in tables:
        for key in ("user_row", "item_row"):
            differs = rows.group_by(key).agg(pl.col(found).n_unique() > 1).select(pl.col(found).any())
            found = [name for name in found if differs[name].item()]
    return found


def _lists_told_apart(tables: list[pl.DataFrame], features: list[str], seed: int) -> tuple[float, tuple[str, ...]]:
    """Area under the ROC curve on unseen users, and the features used most, relative to each list."""
    if not features:
        return 0.5, ()
    column = pl.col(features).cast(pl.Float64)
    within = (column - column.mean().over("user_row")) / (column.std().over("user_row") + SMALL)
    values = [_matrix(rows.with_columns(within), features) for rows in tables]
    halves = [_second_half(rows) for rows in tables]
    train, test = ([part[half == side] for part, half in zip(values, halves, strict=True)] for side in (False, True))
    auc, gains = _told_apart(train, test, seed)
    best = np.argsort(-gains, kind="stable")[:N_NAMED]
    return auc, tuple(features[column] for column in best if gains[column] > 0)


def _told_apart(
    train: list[npt.NDArray[np.float32]], test: list[npt.NDArray[np.float32]], seed: int
) -> tuple[float, npt.NDArray[np.float64]]:
    """Area under the ROC curve on the test rows, and the gain of each feature."""
    import lightgbm as lgb

    labels = [np.repeat([0, 1], [len(part) for part in parts]) for parts in (train, test)]
    settings = {"objective": "binary", "verbosity": -1, "seed": seed, "deterministic": True, "force_row_wise": True}
    booster = lgb.train(settings, lgb.Dataset(np.concatenate(train), labels[0]), N_TREES)
    scores = np.asarray(booster.predict(np.concatenate(test)))
    ranks = rankdata(scores)
    gains = np.asarray(booster.feature_importance("gain"), dtype=np.float64)
    return _area_of_ranks(ranks, labels[1] == 1), gains


def _area(values: npt.NDArray[np.float32], taken: npt.NDArray[np.bool_]) -> float:
    """Of the feature or of its opposite, whichever is larger."""
    area = _area_of_ranks(rankdata(values), taken)
    return max(area, 1.0 - area)


def _area_of_ranks(ranks: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve. Source: Mann and Whitney 1947."""
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n)))


def _distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    return float(ks_2samp(a, b, method="asymp").statistic) if len(a) and len(b) else 0.0


def _sample(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    return rows.sample(min(rows.height, MAX_ROWS), seed=seed)


def _second_half(rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """Every other user, so that no user is on both sides."""
    return (rows["user_row"].rank("dense") % 2 == 0).to_numpy()


def _matrix(rows: pl.DataFrame, features: list[str]) -> npt.NDArray[np.float32]:
    return rows.select(pl.col(features).cast(pl.Float32)).fill_null(float("nan")).to_numpy()
