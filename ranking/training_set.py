"""Candidates and later interactions in, labelled groups out.

Owns the rules by which rows become training rows: only generated candidates, labels from the window after, users
without a taken candidate dropped and counted, rows shuffled inside each group.
"""

from dataclasses import dataclass

import polars as pl

NOT_FEATURES = ("user_row", "item_row", "label", "weight")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Labelled rows, one group a user.

    Attributes:
        rows: the candidate rows with `label` (Int8, the grade of what was taken, 0 for the others) and `weight`
            (Float32, equal for all rows of a user), sorted by `user_row`, shuffled inside a user.
        n_users: users with at least one taken and one other candidate.
        n_dropped: users of the labels that have none, and so teach nothing.
    """

    rows: pl.DataFrame
    n_users: int
    n_dropped: int


def label_candidates(candidates: pl.DataFrame, labels: pl.DataFrame, *, seed: int) -> TrainingSet:
    """Mark the candidates that were taken in the label window.

    The order inside a group is shuffled because gradient boosting breaks ties by row: a taken item that always came
    first would be learnt from its place.

    Args:
        candidates: `user_row`, `item_row` and feature columns.
        labels: `user_row`, `item_row`, `grade` (Int8, from 1) and `weight` (Float32) of the label window; of a pair the
            best grade and the greatest weight count. A user's rows weigh what the items found weigh on average.
        seed: of the shuffle.

    Returns:
        The training set; it may be empty.
    """
    taken = labels.group_by("user_row", "item_row").agg(pl.col("grade").max().alias("label"), pl.col("weight").max())
    rows = candidates.join(taken, on=["user_row", "item_row"], how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("label").fill_null(0), pl.col("weight").mean().over("user_row"))
    rows = rows.filter((pl.col("label").max() != pl.col("label").min()).over("user_row"))
    rows = rows.sample(fraction=1.0, shuffle=True, seed=seed).sort("user_row", maintain_order=True)
    n_users = rows["user_row"].n_unique()
    return TrainingSet(rows, n_users, taken["user_row"].n_unique() - n_users)
