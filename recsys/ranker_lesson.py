"""How labelled rows of two windows teach the ranker, and what it and the interest score must show to be used.

Owns which rows teach and which judge. Making rows is `recsys/second_stage.py`, LightGBM `ranking/ranker.py`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.drift import telling_features
from ranking.features import feature_names
from ranking.ranker import Ranker
from ranking.rerank import top_k
from ranking.training_set import NOT_FEATURES, TrainingSet
from recsys import metrics
from recsys.config import RecommenderConfig
from recsys.notes import Notes

MIN_RANKER_USERS = 30  # fewer judged rankers to be good that lost a third of the blend's ndcg (decision 019)
VALIDATION_SHARE = 0.15
SURELY = 0.99  # level of the interval: an interval over users leaves out the chance in growing trees


def train_ranker(
    earlier: TrainingSet,
    later: TrainingSet,
    config: RecommenderConfig,
    notes: Notes,
    *,
    further: TrainingSet | None = None,
    what: str = "ranker",
) -> Ranker | None:
    """LightGBM on the earlier window with early stopping on the later one, then in as many trees on all rows.

    Args:
        earlier: labelled rows of window B; where they are few, most users of the later window join them, and the rest
            stops the training.
        later: labelled rows of window C.
        config: settings.
        notes: gets what was done.
        further: labelled rows of a window that shares labels with both, which teach only in the end.
        what: the ranker's name in them.

    Returns:
        The ranker; None where there is too little to learn from or the blend of stage 1 ranks the later window better.
    """
    notes.add(
        f"{what}: {earlier.n_users} + {later.n_users} users with a taken candidate in windows B and C, "
        f"{earlier.rows.height + later.rows.height} rows; {earlier.n_dropped + later.n_dropped} users whose taken "
        "items were not among the candidates teach nothing."
    )
    train, validation = parts(earlier, later, config.seed)
    if (n_judges := validation["user_row"].n_unique()) < MIN_RANKER_USERS:
        notes.add(
            f"{what}: left out, {n_judges} users would judge it and {MIN_RANKER_USERS} are needed; lists follow the "
            "blend of stage 1.",
            level=logging.WARNING,
        )
        return None
    names = feature_names(later.rows, exclude=NOT_FEATURES)
    report_telling(later.rows, names, config.seed, notes, what=what)
    try:
        ranker = Ranker(config.ranker, seed=config.seed).fit(train, validation, names, progress=config.progress)
        if not beats_blend(ranker, validation, config.seed, notes, what=what):
            return None
        rows = stacked(train, validation)
        if further is not None:
            rows = stacked(rows, further.rows)
            notes.add(f"{what}: {further.n_users} users of the window halfway between B and C teach it in the end too.")
        return Ranker(config.ranker, seed=config.seed).fit(
            rows, None, names, n_trees=ranker.n_trees, progress=config.progress
        )
    except RuntimeError as error:
        notes.add(f"{error}; lists follow the blend of stage 1.", level=logging.WARNING)
        return None


def earns_its_place(
    earlier: TrainingSet,
    later: TrainingSet,
    pupils: npt.NDArray[np.int32],
    config: RecommenderConfig,
    notes: Notes,
    *,
    first_look: bool = False,
) -> bool:
    """Whether a ranker that reads the interest score is surely better on the later window than one that does not.

    The one that does not may learn from everybody in window B; the other has lost those who taught the interest model.
    Every request pays for the score, so being as good is not enough, nor is it where too few users judge a ranker.

    Args:
        earlier: labelled rows of window B with the interest score, the pupils' rows too.
        later: labelled rows of window C with the interest score.
        pupils: rows of the users of B who taught the interest model.
        config: settings; `keep_interest` may say that it stays in any case.
        notes: gets what was found.
        first_look: the rows are those of some users only, and to be better on average will do.
    """
    if config.keep_interest == "always":
        return True
    others = without_users(earlier, pupils)
    learnt, held_out = parts(others, later, config.seed)
    if (n_judges := held_out["user_row"].n_unique()) < MIN_RANKER_USERS:
        if not first_look:
            notes.add(
                f"interest score: left out, {n_judges} users would judge it and {MIN_RANKER_USERS} are needed "
                '(keep_interest = "always" keeps it).'
            )
        return first_look
    # Both learn from the same users of the later window.
    plain = parts(replace(earlier, n_users=others.n_users), later, config.seed)[0]
    with_it = _ndcg_learnt(learnt, held_out, config)
    without = _ndcg_learnt(without_interest(plain), without_interest(held_out), config)
    difference, low, high = metrics.paired_bootstrap(with_it, without, level=SURELY, seed=config.seed)
    if first_look and difference > 0.0:
        return True
    stays = low > 0.0
    notes.add(
        f"interest score: ndcg@10 on {len(with_it)} users {with_it.mean():.4f} with it, {without.mean():.4f} without, "
        f"difference {difference:+.4f} ({SURELY:.0%} interval {low:+.4f} to {high:+.4f}); it is "
        + ("kept." if stays else 'left out, which saves its time (keep_interest = "always" keeps it).')
    )
    return stays


def _ndcg_learnt(rows: pl.DataFrame, held_out: pl.DataFrame, config: RecommenderConfig) -> npt.NDArray[np.float64]:
    """ndcg@10 of each held-out user by a ranker learnt from the rows, or by the blend where they teach nothing."""
    names = feature_names(rows, exclude=NOT_FEATURES)
    try:
        ranker = Ranker(config.ranker, seed=config.seed).fit(rows, held_out, names, progress=config.progress)
        score = pl.Series(ranker.predict(held_out))
    except RuntimeError:
        score = held_out["stage1_score"]
    return ndcg_of(held_out.with_columns(score=score))


def parts(earlier: TrainingSet, later: TrainingSet, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows to learn from and rows that stop the training: the two windows.

    Where the earlier one is small, most users of the later one join it.
    """
    if 2 * earlier.n_users >= later.n_users:
        return earlier.rows, later.rows
    first, validation = split_users(later.rows, seed)
    return stacked(earlier.rows, first), validation


def stacked(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Both windows' rows; the second's users are numbered after the first's."""
    n = int(first["user_row"].max() or 0) + 1  # type: ignore[arg-type]
    return pl.concat([first, second.with_columns(pl.col("user_row") + pl.lit(n, dtype=pl.Int32))])


def split_users(rows: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training rows and rows of a random `VALIDATION_SHARE` of the users, for early stopping."""
    users = rows["user_row"].unique().sort().shuffle(seed)
    held_out = users.head(max(1, round(VALIDATION_SHARE * len(users)))).implode()
    chosen = pl.col("user_row").is_in(held_out)
    return rows.filter(~chosen), rows.filter(chosen)


def without_users(training: TrainingSet, users: npt.NDArray[np.int32]) -> TrainingSet:
    """The rows of all others, who may teach the ranker."""
    rows = training.rows.filter(~pl.col("user_row").is_in(users))
    return replace(training, rows=rows, n_users=rows["user_row"].n_unique())


def without_interest(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows as they are where there is no interest model."""
    return rows.drop("interest_score", "interest_rank", strict=False)


def beats_blend(ranker: Ranker, validation: pl.DataFrame, seed: int, notes: Notes, *, what: str) -> bool:
    """Whether the ranker's ndcg@10 on the validation users is above that of stage 1's blend, and how surely."""
    scored = validation.with_columns(ranker=pl.Series(ranker.predict(validation)))
    by_ranker, by_blend = (ndcg_of(scored.with_columns(score=pl.col(name))) for name in ("ranker", "stage1_score"))
    difference, low, high = metrics.paired_bootstrap(by_ranker, by_blend, seed=seed)
    wins = difference > 0.0
    notes.add(
        f"{what}: ndcg@10 on {len(by_ranker)} users {by_ranker.mean():.4f}, blend of stage 1 {by_blend.mean():.4f}, "
        f"difference {difference:+.4f} ({low:+.4f} to {high:+.4f}); lists follow the {'ranker' if wins else 'blend'}.",
        level=logging.INFO if wins else logging.WARNING,
    )
    return wins


def ndcg_of(scored: pl.DataFrame, k: int = 10) -> npt.NDArray[np.float64]:
    """ndcg@k of each user of labelled, scored candidate rows."""
    named = {"user_row": "user_id", "item_row": "item_id"}
    truth = scored.filter(pl.col("label") > 0).rename(named)
    hits = metrics.hit_matrix(top_k(scored, k).rename(named), truth, k)
    return metrics.ndcg(hits, k)


def report_telling(rows: pl.DataFrame, names: list[str], seed: int, notes: Notes, *, what: str) -> None:
    """Warn of the caller's own columns that are too good to be true; other features are made from the past alone.

    A column of numbers is a feature itself, one of texts makes groups, and when an item was made is its age.
    """
    given = [name for name in names if "__" in name or name.startswith("of_") or name == "item_age_days"]
    for name, area in telling_features(rows, given, seed=seed).items():
        notes.add(
            f"{what}: the feature {name!r} alone tells what was taken (area under the ROC curve {area:.3f}). Does it "
            "know the future? If so, name its column in ignore_columns.",
            level=logging.WARNING,
        )
