"""Calibrated probabilities: a LightGBM binary head over named features, and a calibration on later rows.

Owns the head, the choice between isotonic and Platt calibration, and their files. Which rows are learnt from, and what
a row is (a pair of user and item, or a user), is the caller's business.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.boosting import grow
from ranking.model_names import check_model, model_names

FloatArray = npt.NDArray[np.float64]
Fit = Callable[[FloatArray, FloatArray, FloatArray], "Calibration"]

FOLDS = 5
EDGE = 1e-12
PLATT_STRENGTH = 1e6  # LogisticRegression's C: as good as no regularisation


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """LightGBM's settings for probabilities.

    Attributes:
        n_trees: upper limit; early stopping usually ends sooner.
        early_stopping: trees without a lower log-loss on the validation rows before training stops.
        learning_rate: shrinkage.
        n_leaves: per tree.
        min_leaf_rows: rows in a leaf at least.
        feature_fraction: features drawn per tree.
        row_fraction: rows drawn per tree.
        l2: regularisation of leaf values.
        max_step: largest change of a logit in one tree before shrinkage; rare labels would overshoot without it.
        n_threads: 0 means all cores.
    """

    n_trees: int = 300
    early_stopping: int = 30
    learning_rate: float = 0.1
    n_leaves: int = 15
    min_leaf_rows: int = 50
    feature_fraction: float = 0.7
    row_fraction: float = 0.8
    l2: float = 5.0
    max_step: float = 5.0
    n_threads: int = 0

    def __post_init__(self) -> None:
        if min(self.n_trees, self.early_stopping, self.min_leaf_rows) < 1 or self.n_leaves < 2:
            raise ValueError(f"heads: counts must be at least 1 and n_leaves at least 2, got {self}")
        if not (0 < self.feature_fraction <= 1 and 0 < self.row_fraction <= 1):
            raise ValueError(f"heads: fractions must lie in (0, 1], got {self}")
        if not (self.learning_rate > 0 and self.max_step > 0):
            raise ValueError(f"heads: learning_rate and max_step must be above 0, got {self}")
        if self.l2 < 0 or self.n_threads < 0:
            raise ValueError(f"heads: l2 and n_threads must be 0 or more, got {self}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A non-decreasing map from logits to probabilities: straight lines between knots, or one logistic curve.

    Attributes:
        method: "isotonic" or "platt".
        x: isotonic: logits of the knots, ascending; Platt: the slope alone.
        y: isotonic: probabilities at the knots; Platt: the intercept alone.
    """

    method: Literal["isotonic", "platt"]
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, logits: FloatArray) -> FloatArray:
        """Probabilities, (n,), strictly between 0 and 1."""
        if self.method == "isotonic":
            found = np.interp(logits, self.x, self.y)
        else:
            found = _sigmoid(self.x[0] * logits + self.y[0])
        return np.asarray(np.clip(found, EDGE, 1.0 - EDGE), dtype=np.float64)


def isotonic(logits: FloatArray, labels: FloatArray, weights: FloatArray) -> Calibration:
    """The non-decreasing step function of least squares, joined by straight lines.

    The ends of the data are often all of one label; there the rule of succession (one more row of either label) stands
    in for a share of 0 or 1.
    Source: Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, labels, weights)
    shares = fitted.predict(logits)
    low, high = (1.0 / (weights[shares == end].sum() + 2.0) for end in (0.0, 1.0))
    y = np.clip(fitted.y_thresholds_, low, max(low, 1.0 - high))
    return Calibration("isotonic", tuple(map(float, fitted.X_thresholds_)), tuple(map(float, y)))


def platt(logits: FloatArray, labels: FloatArray, weights: FloatArray) -> Calibration:
    """A logistic curve of the logit, fitted to labels that the rule of succession moves a little off 0 and 1.

    Source: Platt 1999, "Probabilistic outputs for support vector machines and comparisons to regularized likelihood
    methods".
    """
    from sklearn.linear_model import LogisticRegression

    n_taken, n_all = (weights * labels).sum(), weights.sum()
    targets = np.where(labels > 0, (n_taken + 1.0) / (n_taken + 2.0), 1.0 / (n_all - n_taken + 2.0))
    model = LogisticRegression(C=PLATT_STRENGTH, solver="newton-cholesky", max_iter=200)
    model.fit(
        np.tile(logits, 2)[:, None],
        np.repeat([1, 0], len(logits)),
        np.concatenate([weights * targets, weights * (1.0 - targets)]),
    )
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration("platt", (max(slope, 0.0),), (intercept,))


def fit_calibration(
    logits: FloatArray, labels: FloatArray, weights: FloatArray, groups: npt.NDArray[np.int64]
) -> Calibration:
    """Platt, or isotonic where its log-loss on held-out groups is lower by two standard errors or more.

    Isotonic calibration has many more degrees of freedom, so a draw goes to Platt.

    Args:
        logits: (n,), of the uncalibrated head.
        labels: (n,), 0 or 1.
        weights: (n,), how many rows of the population each row stands for.
        groups: (n,), rows of one group (a user) are never on both sides of the comparison.

    Raises:
        ValueError: labels are all alike, or there are fewer than two groups.
    """
    if len(np.unique(labels)) < 2 or len(np.unique(groups)) < 2:
        raise ValueError(
            f"calibration: {len(labels)} rows of {len(np.unique(groups))} users with {labels.sum():.0f} positives; "
            "at least two users and both labels are needed"
        )
    by_platt, by_isotonic = (
        weights * _held_out_losses(fit, logits, labels, weights, groups) for fit in (platt, isotonic)
    )
    gains = np.bincount(np.unique(groups, return_inverse=True)[1], by_platt - by_isotonic)
    wins = gains.sum() > 2 * np.sqrt(len(gains)) * gains.std()
    return (isotonic if wins else platt)(logits, labels, weights)


def weighted_log_loss(labels: FloatArray, probabilities: FloatArray, weights: FloatArray) -> float:
    """Weighted mean of the negative log-likelihood, in nats."""
    return float(np.average(_losses(labels, probabilities), weights=weights))


class ProbabilityHead:
    """Rows in, calibrated probabilities out."""

    def __init__(self, config: HeadConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.features: list[str] = []
        self._booster: Any = None
        self._calibration: Calibration | None = None

    @property
    def method(self) -> str:
        """How logits become probabilities: "isotonic" or "platt"."""
        return self._calibrated().method

    def fit(
        self, train: pl.DataFrame, validation: pl.DataFrame, features: list[str], *, progress: bool = False
    ) -> Self:
        """Learn the order of the rows, and probabilities that still await `calibrate`.

        Args:
            train: `label` (0 or 1), `weight` (above 0) and the features.
            validation: the same of other users, for early stopping.
            features: names of the columns to read.
            progress: whether stderr shows a bar.

        Raises:
            ValueError: no features or one missing, a label that is not 0 or 1, a weight that is not above 0, or only
                one of the two labels to learn from.
        """
        for rows in (train, validation):
            _check_rows(rows, features)
        _check_labels(train)
        self.features = list(features)
        learnt = self._dataset(train)
        self._booster = grow(
            self._parameters(), learnt, self.config.n_trees, validation=self._dataset(validation, reference=learnt),
            early_stopping=self.config.early_stopping, name="fit probabilities", progress=progress,
        )  # fmt: skip
        self._calibration = None
        return self

    def calibrate(self, rows: pl.DataFrame) -> Self:
        """Learn how logits become probabilities, from rows that `fit` did not see.

        Args:
            rows: `user_row`, `label`, `weight` and the features.

        Raises:
            RuntimeError: not fitted.
            ValueError: as `fit`, or the rows are of one user only.
        """
        _check_rows(rows, self.features)
        _check_labels(rows)
        labels, weights = (rows[name].cast(pl.Float64).to_numpy() for name in ("label", "weight"))
        groups = rows["user_row"].cast(pl.Int64).to_numpy()
        self._calibration = fit_calibration(self.logits(rows), labels, weights, groups)
        return self

    def logits(self, rows: pl.DataFrame) -> FloatArray:
        """Uncalibrated scores, float64 (n_rows,).

        Raises:
            RuntimeError: not fitted.
            ValueError: a feature column is missing.
        """
        if self._booster is None:
            raise RuntimeError("probability head: not fitted; call fit or load first")
        _check_columns(rows, self.features)
        if rows.is_empty():
            return np.zeros(0)
        scores = self._booster.predict(self._matrix(rows), raw_score=True, num_threads=self.config.n_threads or None)
        return np.asarray(scores, dtype=np.float64)

    def predict(self, rows: pl.DataFrame) -> FloatArray:
        """Calibrated probabilities, float64 (n_rows,), strictly between 0 and 1.

        Raises:
            RuntimeError: not fitted, or not calibrated.
            ValueError: a feature column is missing.
        """
        return self._calibrated()(self.logits(rows))

    def save(self, folder: Path) -> None:
        """Write `model.txt` (LightGBM's text form) and `head.json` (features and calibration)."""
        facts = {"features": self.features, "calibration": asdict(self._calibrated())}
        folder.mkdir(parents=True, exist_ok=True)
        self._booster.save_model(folder / "model.txt", num_iteration=self._booster.best_iteration or None)
        (folder / "head.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, config: HeadConfig, *, seed: int) -> Self:
        """Read what `save` wrote. Check the files' hashes first: a damaged model can abort the process.

        Raises:
            ValueError: the model was trained on other features than `head.json` names.
        """
        import lightgbm as lgb

        facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        stored = facts["calibration"]
        head = cls(config, seed=seed)
        head.features = facts["features"]
        head._booster = lgb.Booster(model_file=folder / "model.txt")
        check_model(head._booster, head.features, "probability head")
        head._calibration = Calibration(stored["method"], tuple(stored["x"]), tuple(stored["y"]))
        return head

    def _calibrated(self) -> Calibration:
        if self._calibration is None:
            raise RuntimeError("probability head: not calibrated; call fit and calibrate, or load first")
        return self._calibration

    def _parameters(self) -> dict[str, Any]:
        config = self.config
        return {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": config.learning_rate,
            "num_leaves": config.n_leaves,
            "min_data_in_leaf": config.min_leaf_rows,
            # Weighted rows of a rare label have tiny hessians; rows in a leaf are what limits it.
            "min_sum_hessian_in_leaf": 0.0,
            "feature_fraction": config.feature_fraction,
            "bagging_fraction": config.row_fraction,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "max_delta_step": config.max_step,
            "num_threads": config.n_threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _dataset(self, rows: pl.DataFrame, reference: Any = None) -> Any:
        import lightgbm as lgb

        # Features keep their names on our side: LightGBM refuses or changes names with spaces, commas or brackets.
        return lgb.Dataset(
            self._matrix(rows),
            label=rows["label"].to_numpy(),
            weight=rows["weight"].to_numpy(),
            feature_name=model_names(self.features),
            reference=reference,
        )

    def _matrix(self, rows: pl.DataFrame) -> npt.NDArray[np.float32]:
        return rows.select(pl.col(self.features).cast(pl.Float32)).fill_null(float("nan")).to_numpy()


def _held_out_losses(
    fit: Fit, logits: FloatArray, labels: FloatArray, weights: FloatArray, groups: npt.NDArray[np.int64]
) -> FloatArray:
    """Log-loss of each row, calibrated by the other folds of groups; zero for a fold whose others have one label."""
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    losses = np.zeros_like(logits)
    for held_out in np.unique(fold):
        inside = fold != held_out
        if len(np.unique(labels[inside])) == 2:
            calibration = fit(logits[inside], labels[inside], weights[inside])
            losses[~inside] = _losses(labels[~inside], calibration(logits[~inside]))
    return losses


def _losses(labels: FloatArray, probabilities: FloatArray) -> FloatArray:
    return np.asarray(-np.log(np.where(labels > 0, probabilities, 1.0 - probabilities)), dtype=np.float64)


def _sigmoid(values: FloatArray) -> FloatArray:
    from scipy.special import expit

    return np.asarray(expit(values), dtype=np.float64)


def _check_columns(rows: pl.DataFrame, features: list[str]) -> None:
    if not features:
        raise ValueError("probability head: there are no features; name at least one numeric column")
    missing = [name for name in features if name not in rows.columns]
    if missing:
        raise ValueError(f"probability head: {len(missing)} feature columns are missing, first: {missing[:5]}")


def _check_rows(rows: pl.DataFrame, features: list[str]) -> None:
    _check_columns(rows, features)
    wrong = rows.filter(~(pl.col("label").is_in([0, 1]) & (pl.col("weight") > 0)).fill_null(False))
    if wrong.height:
        raise ValueError(
            f"probability head: {wrong.height} rows have a label other than 0 and 1 or a weight that is not above 0, "
            f"first: {wrong.select('label', 'weight').row(0)}"
        )


def _check_labels(rows: pl.DataFrame) -> None:
    if rows["label"].n_unique() < 2:
        raise ValueError(f"probability head: {rows.height} rows have one and the same label, both are needed")
