"""LightGBM lambdarank over named features.

Owns group sizes, guards on labels, and the model file. Which rows are trained on is `ranking/training_set.py`.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.boosting import grow
from ranking.features import Columns
from ranking.model_names import check_model, model_names

MAX_GROUP = 10_000  # LightGBM refuses longer queries
MAX_LABEL = 30  # LightGBM's default label gains end here


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerConfig:
    """LightGBM's settings.

    Attributes:
        n_trees: upper limit; early stopping usually ends sooner.
        early_stopping: trees without a better ndcg@10 on the validation users before training stops.
        learning_rate: shrinkage.
        n_leaves: per tree.
        min_leaf_rows: rows in a leaf at least.
        feature_fraction: features drawn per tree.
        row_fraction: rows drawn per tree.
        l2: regularisation of leaf values.
        truncation: places of a list that the loss looks at.
        rising: features that may only ever raise a score: whoever tops every source may not fall behind for it.
        n_seeds: models of different seeds whose mean score counts: steadier, for as many times the work.
        n_threads: 0 means all cores.
    """

    n_trees: int = 400
    early_stopping: int = 40
    learning_rate: float = 0.05
    n_leaves: int = 31
    min_leaf_rows: int = 50
    feature_fraction: float = 0.7
    row_fraction: float = 0.8
    l2: float = 5.0
    truncation: int = 30
    rising: tuple[str, ...] = ("stage1_score",)
    n_seeds: int = 1
    n_threads: int = 0

    def __post_init__(self) -> None:
        counts = (self.n_trees, self.early_stopping, self.min_leaf_rows, self.truncation, self.n_seeds)
        if min(counts) < 1 or self.n_leaves < 2:
            raise ValueError(f"ranker: counts must be at least 1 and n_leaves at least 2, got {self}")
        if not (0 < self.feature_fraction <= 1 and 0 < self.row_fraction <= 1 and self.learning_rate > 0):
            raise ValueError(f"ranker: fractions must lie in (0, 1] and learning_rate above 0, got {self}")
        if self.l2 < 0 or self.n_threads < 0:
            raise ValueError(f"ranker: l2 and n_threads must be 0 or more, got {self}")


class Ranker:
    """Scores candidate rows; higher is better, and only the order inside one user means anything."""

    def __init__(self, config: RankerConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.features: list[str] = []
        self._boosters: list[Any] = []

    def fit(
        self,
        train: pl.DataFrame,
        validation: pl.DataFrame | None,
        features: list[str],
        *,
        n_trees: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Train on labelled groups.

        Args:
            train: `user_row`, `label` and the features; rows of a user lie together. Where there is a `weight`, a row
                teaches in proportion to it.
            validation: the same of other users or of a later window, to stop early by; without it all trees are grown.
            features: names of the columns to read.
            n_trees: how many at most, the configured number by default.
            progress: whether stderr shows a bar.

        Raises:
            ValueError: no features, a feature column that is missing, no rows, a label that is null, NaN, negative,
                fractional or above 30, rows of one user apart, no user with both a taken and another candidate, or a
                user with more than 10,000 rows.
            RuntimeError: training ended with the same score for every row.
        """
        for rows in (train,) if validation is None else (train, validation):
            check_groups(rows)
            _check_columns(rows, features)
        self.features = list(features)
        grown = partial(self._grow, train, validation, n_trees or self.config.n_trees, progress=progress)
        self._boosters = [grown(seed) for seed in range(self.seed, self.seed + self.config.n_seeds)]
        if np.ptp(self.predict(train)) == 0.0:
            self._boosters = []
            raise RuntimeError(
                f"ranker: {train.height} rows with {len(features)} features gave every row the same score; "
                "lower min_leaf_rows or bring more users with labels"
            )
        return self

    @property
    def n_trees(self) -> int:
        """How many trees a score comes from; with several seeds their mean, rounded."""
        return round(float(np.mean([booster.best_iteration or booster.num_trees() for booster in self._fitted()])))

    def predict(self, rows: pl.DataFrame | Columns) -> npt.NDArray[np.float64]:
        """Scores, float64 (n_rows,), of a frame or of arrays by name.

        Raises:
            RuntimeError: not fitted.
            ValueError: a feature column is missing.
        """
        return self._mean(rows)

    def contributions(self, rows: pl.DataFrame | Columns) -> npt.NDArray[np.float64]:
        """What each feature adds to the score of each row, float64 (n_rows, n_features + 1), by LightGBM's own SHAP.

        Columns are in the order of `features`; the last one is the bias. A row sums to its score.

        Raises:
            RuntimeError, ValueError: see `predict`.

        Source: Lundberg et al. (2020), TreeSHAP.
        """
        return self._mean(rows, pred_contrib=True).reshape(-1, len(self.features) + 1)

    def save(self, folder: Path) -> None:
        """Write `model.txt` (LightGBM's text form), one more for each further seed, and `features.json`."""
        boosters = self._fitted()
        folder.mkdir(parents=True, exist_ok=True)
        for row, booster in enumerate(boosters):
            booster.save_model(folder / _model_file(row), num_iteration=booster.best_iteration or None)
        (folder / "features.json").write_text(json.dumps(self.features, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, config: RankerConfig, *, seed: int) -> Self:
        """Read what `save` wrote, `config.n_seeds` models.

        Check the files' hashes first: a damaged model can abort the process.

        Raises:
            ValueError: a model was trained on other features than `features.json` names.
        """
        import lightgbm as lgb

        ranker = cls(config, seed=seed)
        ranker.features = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        ranker._boosters = [lgb.Booster(model_file=folder / _model_file(row)) for row in range(config.n_seeds)]
        for booster in ranker._boosters:
            check_model(booster, ranker.features, "ranker")
        return ranker

    def _fitted(self) -> list[Any]:
        if not self._boosters:
            raise RuntimeError("ranker: not fitted; call fit or load first")
        return self._boosters

    def _grow(
        self, train: pl.DataFrame, validation: pl.DataFrame | None, n_trees: int, seed: int, *, progress: bool
    ) -> Any:
        """One model."""
        learnt = self._dataset(train)
        stops = None if validation is None else self._dataset(validation, reference=learnt)
        return grow(
            self._parameters(seed), learnt, n_trees, validation=stops, early_stopping=self.config.early_stopping,
            name="fit ranker", progress=progress,
        )  # fmt: skip

    def _mean(self, rows: pl.DataFrame | Columns, **asked: bool) -> npt.NDArray[np.float64]:
        """What the models predict, on average."""
        boosters = self._fitted()
        _check_columns(rows, self.features)
        matrix, threads = self._matrix(rows), self.config.n_threads or None
        if not len(matrix):
            return np.zeros(0)
        parts = [booster.predict(matrix, num_threads=threads, **asked) for booster in boosters]
        mean: npt.NDArray[np.float64] = np.mean(np.asarray(parts, dtype=np.float64), axis=0)
        return mean

    def _parameters(self, seed: int) -> dict[str, Any]:
        config = self.config
        return {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "lambdarank_truncation_level": config.truncation,
            "learning_rate": config.learning_rate,
            "num_leaves": config.n_leaves,
            "min_data_in_leaf": config.min_leaf_rows,
            "feature_fraction": config.feature_fraction,
            "bagging_fraction": config.row_fraction,
            "bagging_freq": 1,
            "lambda_l2": config.l2,
            "monotone_constraints": [int(name in config.rising) for name in self.features],
            "num_threads": config.n_threads,
            "seed": seed,
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
            group=group_sizes(rows),
            weight=_weights(rows),
            feature_name=model_names(self.features),
            reference=reference,
        )

    def _matrix(self, rows: pl.DataFrame | Columns) -> npt.NDArray[np.float32]:
        """Float32 (n_rows, n_features), NaN for null, one feature after the other in memory."""
        columns = rows.select(self.features).to_dict() if isinstance(rows, pl.DataFrame) else rows
        return np.stack([_numbers(columns[name]) for name in self.features]).T


def _weights(rows: pl.DataFrame) -> npt.NDArray[np.float32] | None:
    """Float32 (n_rows,), 1 on average, since regularisation has no other measure; None where all weigh the same."""
    if "weight" not in rows.columns or rows["weight"].n_unique() < 2:
        return None
    weights = rows["weight"].cast(pl.Float64)
    return (weights / weights.mean()).cast(pl.Float32).to_numpy()


def _model_file(row: int) -> str:
    return f"model-{row}.txt" if row else "model.txt"


def _numbers(column: pl.Series | npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    values = column.cast(pl.Float32).to_numpy() if isinstance(column, pl.Series) else column
    return values.astype(np.float32, copy=False)


def _check_columns(rows: pl.DataFrame | Columns, features: list[str]) -> None:
    if not features:
        raise ValueError("ranker: there are no features; name at least one numeric column")
    known = set(rows.columns if isinstance(rows, pl.DataFrame) else rows)
    missing = [name for name in features if name not in known]
    if missing:
        raise ValueError(f"ranker: {len(missing)} feature columns are missing, first: {missing[:5]}")


def group_sizes(rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Rows per user in the order in which the users come; equal users must lie together."""
    return rows["user_row"].rle().struct.field("len").to_numpy().astype(np.int64)


def check_groups(rows: pl.DataFrame) -> None:
    """Refuse what LightGBM would abort on, or worse, train on without a word.

    Raises:
        ValueError: see `Ranker.fit`.
    """
    if rows.is_empty():
        raise ValueError("ranker: there are no labelled rows to train on")
    labels = rows["label"].cast(pl.Float64)
    bad = rows.filter(
        labels.is_null() | labels.is_nan() | (labels < 0) | (labels > MAX_LABEL) | (labels != labels.round())
    )
    if bad.height:
        raise ValueError(
            f"ranker: {bad.height} labels are not whole numbers from 0 to {MAX_LABEL}, "
            f"first: {bad['label'].head(5).to_list()}"
        )
    if rows["user_row"].rle().len() != rows["user_row"].n_unique():
        raise ValueError("ranker: rows of one user must lie together; sort by user_row first")
    sizes = group_sizes(rows)
    if sizes.max() > MAX_GROUP:
        raise ValueError(
            f"ranker: a user has {sizes.max()} candidates, LightGBM takes at most {MAX_GROUP}; lower n_candidates"
        )
    if rows.group_by("user_row").agg(mixed=pl.col("label").n_unique() > 1)["mixed"].sum() == 0:
        raise ValueError("ranker: no user has both a taken and another candidate, there is nothing to learn from")
