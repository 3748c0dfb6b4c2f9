"""Time: the windows A | B | C that `fit` trains its stages on.

How train and test are divided for an evaluation, and what a row's place in time is, is `recsys/splits.py`. All
functions take the canonical interactions table and order its rows by content first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl

from recsys.errors import InvalidConfig
from recsys.splits import TICK, cut_row, end_of, from_last, in_order, start_at

WindowKind = Literal["time", "last"]

_MIN_HISTORY = 2  # rows of history that a user of a label window of kind "last" always keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """How `fit` divides time into A (towers), B (interest model and ranker) and C (ranker).

    Attributes:
        kind: "time" cuts globally, "last" takes each user's last interactions, "auto" takes "time" where its
            label windows hold enough users and "last" otherwise.
        label_share: Share of all rows in each of the windows B and C of kind "time", in (0, 0.5).
        min_label_users_share: "auto" wants at least this share of the users with 3 or more interactions to
            have both labels and history, in B and in C, in [0, 1].
        min_label_users: "auto" also wants at least this many such users, at least 1.

    Raises:
        InvalidConfig: A value is out of its range.
    """

    kind: Literal["auto", "time", "last"] = "auto"
    label_share: float = 0.1
    min_label_users_share: float = 0.2
    min_label_users: int = 50

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "time", "last"):
            raise InvalidConfig(f'windows kind is {self.kind!r}; it must be "auto", "time" or "last"')
        if not 0 < self.label_share < 0.5:
            raise InvalidConfig(f"label_share is {self.label_share}; it must lie strictly between 0 and 0.5")
        if not 0 <= self.min_label_users_share <= 1:
            raise InvalidConfig(f"min_label_users_share is {self.min_label_users_share}; it must lie in [0, 1]")
        if self.min_label_users < 1:
            raise InvalidConfig(f"min_label_users is {self.min_label_users}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The windows A | B | C. `history_b` is A; `history_c` is A and B; C is `labels_c`.

    Always `history_b` + `labels_b` = `history_c` and `history_c` + `labels_c` = all rows. Label windows may
    be empty.

    Attributes:
        kind: "time" or "last".
        history_b: What is known before window B.
        labels_b: What happened in window B.
        history_c: What is known before window C.
        labels_c: What happened in window C.
        start_b: First moment of window B in UTC, None for kind "last" where each user has an own one.
        start_c: First moment of window C in UTC, None for kind "last".
        end: One second after the last row in UTC, for both kinds: the `as_of` of the final fit.
        reason: One sentence that says why this kind was taken, with the numbers.
    """

    kind: WindowKind
    history_b: pl.DataFrame
    labels_b: pl.DataFrame
    history_c: pl.DataFrame
    labels_c: pl.DataFrame
    start_b: datetime | None
    start_c: datetime | None
    end: datetime
    reason: str


def make_windows(interactions: pl.DataFrame, config: WindowConfig) -> Windows:
    """Divide interactions into the windows A | B | C.

    "time": two global cuts; C holds the last `label_share` of rows and B the `label_share` before it, as
    nearly as equal timestamps allow, which never straddle a cut. "last": each user's last interaction is his
    label in C and the one before it his label in B, as long as at least 2 rows of history stay before it;
    so C labels users with 3 or more rows, B those with 4 or more.

    Raises:
        InvalidData: `interactions` has no rows.
    """
    rows = in_order(interactions)
    if config.kind == "last":
        return _last_windows(rows, "Each user's last interactions, as asked for.")
    windows = _time_windows(rows, config.label_share)
    if config.kind == "time":
        return windows
    n_b, n_c = (_n_known(windows.labels_b, windows.history_b), _n_known(windows.labels_c, windows.history_c))
    n_active = rows.group_by("user_id").len().filter(pl.col("len") >= 3).height
    needed = max(config.min_label_users, int(np.ceil(config.min_label_users_share * n_active)))
    counts = f"windows B and C hold {n_b} and {n_c} users with labels and history"
    limit = f"{needed} are needed ({n_active} users have 3 or more interactions)"
    if min(n_b, n_c) >= needed:
        return replace(windows, reason=f"Global cuts in time: {counts}; {limit}.")
    return _last_windows(rows, f"Each user's last interactions: under global cuts {counts}; {limit}.")


def window_between(windows: Windows) -> Windows | None:
    """The same rows with both cuts later by half a window: B becomes the label window halfway between B and C.

    It shares labels with both, so it may teach only when nothing is left to be measured. None for kind "last", where
    nothing lies between a user's last two interactions, and where B has no second moment to be cut at.
    """
    if windows.kind == "last":
        return None
    rows = pl.concat([windows.history_c, windows.labels_c])
    row_b, row_c = windows.history_b.height, windows.history_c.height
    later_b, later_c = (cut_row(rows["timestamp"], sum(ends) / 2) for ends in ((row_b, row_c), (row_c, rows.height)))
    if not row_b < later_b < row_c:
        return None
    return _cut_at(rows, later_b, later_c, "Halfway between windows B and C.")


def novelty(labels: pl.DataFrame, history: pl.DataFrame) -> float:
    """Share of the interactions in `labels` whose item has none in `history`; 0 without labels."""
    return labels.join(history, on="item_id", how="anti").height / max(1, labels.height)


def moments(history: pl.DataFrame, kind: WindowKind, as_of: datetime | None) -> pl.DataFrame:
    """The moment as of which each user's features are taken.

    Args:
        history: Canonical interactions; one output row for each of its users.
        kind: "time": `as_of` for everyone. "last": one second after the user's own last row of `history`.
        as_of: Start of the label window in UTC; not used for kind "last".

    Returns:
        Frame `user_id`, `moment` (Datetime("us", "UTC")), sorted by user_id.

    Raises:
        InvalidConfig: `kind` is "time" and `as_of` is None.
    """
    if kind == "time" and as_of is None:
        raise InvalidConfig('as_of is None; windows of kind "time" need the moment at which features are taken')
    moment = pl.lit(as_of) if kind == "time" else pl.col("timestamp").max() + TICK
    moment = moment.cast(pl.Datetime("us", "UTC")).alias("moment")
    return history.group_by("user_id").agg(moment).sort("user_id")


def _time_windows(rows: pl.DataFrame, label_share: float) -> Windows:
    row_c = cut_row(rows["timestamp"], rows.height * (1 - label_share))
    row_b = cut_row(rows["timestamp"][:row_c], rows.height * (1 - 2 * label_share))
    return _cut_at(rows, row_b, row_c, "Global cuts in time, as asked for.")


def _cut_at(rows: pl.DataFrame, row_b: int, row_c: int, reason: str) -> Windows:
    return Windows(
        kind="time",
        history_b=rows[:row_b],
        labels_b=rows[row_b:row_c],
        history_c=rows[:row_c],
        labels_c=rows[row_c:],
        start_b=start_at(rows, row_b),
        start_c=start_at(rows, row_c),
        end=end_of(rows),
        reason=reason,
    )


def _last_windows(rows: pl.DataFrame, reason: str) -> Windows:
    n_rows = pl.len().over("user_id")
    in_c = (from_last() == 0) & (n_rows >= _MIN_HISTORY + 1)
    in_b = (from_last() == 1) & (n_rows >= _MIN_HISTORY + 2)
    return Windows(
        kind="last",
        history_b=rows.filter(~in_b & ~in_c),
        labels_b=rows.filter(in_b),
        history_c=rows.filter(~in_c),
        labels_c=rows.filter(in_c),
        start_b=None,
        start_c=None,
        end=end_of(rows),
        reason=reason,
    )


def _n_known(labels: pl.DataFrame, history: pl.DataFrame) -> int:
    return labels.select("user_id").unique().join(history, on="user_id", how="semi").height
