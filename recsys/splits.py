"""Time: train and test for evaluation, and the windows A | B | C that `fit` trains its stages on.

Owns every decision about which interactions lie before and which after a moment; no other module slices
interactions by time. It does not validate tables (schema), compute features or draw negatives.

All functions take the canonical interactions table: `user_id`, `item_id`, `timestamp` (Datetime, UTC) and
further columns, which are carried along. Rows are ordered by content first (timestamp, user, item, then
the other columns), so the order in which rows come never changes an answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, cast

import numpy as np
import polars as pl

from recsys.errors import InvalidConfig, InvalidData

SplitKind = Literal["time", "rolling", "leave-last-out", "random"]
WindowKind = Literal["time", "last"]

_TICK = timedelta(seconds=1)
_MIN_HISTORY = 2  # rows of history that a user of a label window of kind "last" always keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One train/test cut of an interactions table.

    Attributes:
        kind: "time", "rolling", "leave-last-out" or "random".
        train: Canonical interactions to fit on.
        test: Canonical interactions to predict; may hold users and items that `train` does not know.
        as_of: Exclusive upper bound in UTC of what may be known when fitting: the cut of a time split, one
            second after the last row of `train` for the others.
        notes: Sentences that belong beside every number measured on this split.
    """

    kind: SplitKind
    train: pl.DataFrame
    test: pl.DataFrame
    as_of: datetime
    notes: tuple[str, ...]

    @property
    def test_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the sorted distinct (user_id, item_id) test pairs.

        Two runs that print the same hash were measured on the same pairs. Each pair is hashed as one line
        of JSON, so the integer 1 and the string "1" differ.
        """
        return hash_of(self.test)


def hash_of(*tests: pl.DataFrame) -> str:
    """The test hash of several cuts together; of one it is `Split.test_hash`."""
    digest = hashlib.sha256()
    for test in tests:
        pairs = test.select("user_id", "item_id").unique().sort("user_id", "item_id")
        digest.update("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs.iter_rows()).encode())
    return digest.hexdigest()[:16]


def time_split(interactions: pl.DataFrame, *, test_share: float = 0.1) -> Split:
    """Cut at one moment for everybody: rows at or after it are the test.

    The cut is the timestamp whose share of rows at or after it is nearest to `test_share`; equal timestamps
    never straddle it. Where all rows share one timestamp there is nothing to cut and the test is empty.
    Users and items that appear only in the test are kept there.

    Args:
        interactions: Canonical interactions, at least one row.
        test_share: Share of rows to test on, in (0, 1).

    Raises:
        InvalidConfig: `test_share` is out of range.
        InvalidData: `interactions` has no rows.
    """
    _check_share(test_share)
    rows = _ordered(interactions)
    cut_row = _cut_row(rows["timestamp"], rows.height * (1 - test_share))
    train, test = rows[:cut_row], rows[cut_row:]
    as_of = _start(rows, cut_row)
    share = test.height / rows.height
    notes = (
        f"Global cut at {as_of.isoformat()}: {test.height} of {rows.height} rows ({share:.1%}) are test.",
        f"{_n_unseen(test, train, 'user_id')} test users and {_n_unseen(test, train, 'item_id')} test items "
        "have no row in train; they are kept.",
    )
    return Split(kind="time", train=train, test=test, as_of=as_of, notes=notes)


def leave_last_out(interactions: pl.DataFrame, *, min_items: int = 5, repeats: bool) -> Split:
    """Hold out the last interaction of every user with at least `min_items` distinct items.

    "Last" is by timestamp, then by item_id. All other rows, and all rows of users with fewer items, are
    train. This is the protocol of most published tables; it leaks across users in time, and says so.

    Args:
        interactions: Canonical interactions, at least one row.
        min_items: Distinct items a test user has, at least 2 so that some history is left.
        repeats: False first drops all but the first event of each (user, item) pair, in train and test, so
            that the held-out item is new to its user; True keeps repeated events.

    Raises:
        InvalidConfig: `min_items` is below 2.
        InvalidData: `interactions` has no rows.
    """
    if min_items < 2:
        raise InvalidConfig(f"min_items is {min_items}; it must be at least 2, so that a test user keeps some history")
    rows = _ordered(interactions)
    if not repeats:
        rows = rows.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    enough = pl.col("item_id").n_unique().over("user_id") >= min_items
    held_out = enough & (_from_last() == 0)
    train, test = rows.filter(~held_out), rows.filter(held_out)
    notes = (
        "Leaks across users in time: train holds other users' rows from after a user's held-out row.",
        f"{test.height} of {rows['user_id'].n_unique()} users have at least {min_items} distinct items and a "
        "held-out row.",
        "Repeated events are kept." if repeats else "Only the first event of each (user, item) pair is kept.",
    )
    return Split(kind="leave-last-out", train=train, test=test, as_of=end_of(train), notes=notes)


def rolling_splits(interactions: pl.DataFrame, *, test_share: float = 0.1, n_cuts: int = 3) -> tuple[Split, ...]:
    """Several global cuts, oldest first: each test lasts until the next cut, the last one until the end.

    Every test holds about `test_share` (in (0, 1)) / `n_cuts` (at least 1) of all rows. Cuts that equal timestamps make
    the same are one. Raises as `time_split`, and InvalidConfig where `n_cuts` is out of range.
    """
    if n_cuts < 1:
        raise InvalidConfig(f"n_cuts is {n_cuts}; it must be at least 1")
    _check_share(test_share)
    rows = _ordered(interactions)
    targets = [rows.height * (1 - test_share * (n_cuts - place) / n_cuts) for place in range(n_cuts)]
    starts = sorted({_cut_row(rows["timestamp"], target) for target in targets})
    ends = [*starts[1:], rows.height]
    notes = (
        f"Rolling: {len(starts)} global cuts; every test lasts until the next cut, and each system is fitted anew.",
    )
    return tuple(
        Split(kind="rolling", train=rows[:start], test=rows[start:end], as_of=_start(rows, start), notes=notes)
        for start, end in zip(starts, ends, strict=True)
    )


def random_split(interactions: pl.DataFrame, *, test_share: float = 0.1, seed: int = 0) -> Split:
    """A `test_share` of the rows, drawn at random, is the test. It leaks the future of every user, and says so.

    Raises:
        InvalidConfig: `test_share` is out of range.
        InvalidData: `interactions` has no rows.
    """
    _check_share(test_share)
    rows = _ordered(interactions)
    n_test = min(round(rows.height * test_share), max(rows.height - 1, 0))  # one row at least stays in train
    drawn = np.random.default_rng(seed).permutation(rows.height) < n_test
    train, test = rows.filter(~drawn), rows.filter(drawn)
    notes = (
        "WARNING: a random split leaks the future: train holds what every user did after his test rows. Real systems "
        "do worse than these numbers, and their order may differ. Use the time split to decide anything.",
    )
    return Split(kind="random", train=train, test=test, as_of=end_of(train), notes=notes)


def split(
    interactions: pl.DataFrame,
    kind: SplitKind,
    *,
    test_share: float = 0.1,
    min_items: int = 5,
    repeats: bool = False,
) -> Split:
    """The one cut of a split by name; arguments and errors are those of `split_all`."""
    return split_all(interactions, kind, test_share=test_share, min_items=min_items, repeats=repeats, n_cuts=1)[0]


def split_all(
    interactions: pl.DataFrame,
    kind: SplitKind,
    *,
    test_share: float = 0.1,
    min_items: int = 5,
    repeats: bool = False,
    n_cuts: int = 3,
    seed: int = 0,
) -> tuple[Split, ...]:
    """All cuts of a split by name; every kind but "rolling" has one.

    Raises InvalidConfig where `kind` is unknown, and what the chosen split raises.
    """
    match kind:
        case "time":
            return (time_split(interactions, test_share=test_share),)
        case "rolling":
            return rolling_splits(interactions, test_share=test_share, n_cuts=n_cuts)
        case "leave-last-out":
            return (leave_last_out(interactions, min_items=min_items, repeats=repeats),)
        case "random":
            return (random_split(interactions, test_share=test_share, seed=seed),)
    raise InvalidConfig(f'split kind is {kind!r}; it must be "time", "rolling", "leave-last-out" or "random"')


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
    rows = _ordered(interactions)
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
    moment = pl.lit(as_of) if kind == "time" else pl.col("timestamp").max() + _TICK
    moment = moment.cast(pl.Datetime("us", "UTC")).alias("moment")
    return history.group_by("user_id").agg(moment).sort("user_id")


def end_of(interactions: pl.DataFrame) -> datetime:
    """One second after the last row, in UTC: the exclusive `as_of` under which every row is known.

    Raises:
        InvalidData: `interactions` has no rows.
    """
    if interactions.is_empty():
        raise InvalidData(table="interactions", rule="must not be empty", remedy="Pass at least 1 row")
    return cast(datetime, interactions["timestamp"].max()) + _TICK


def _check_share(test_share: float) -> None:
    if not 0 < test_share < 1:
        raise InvalidConfig(f"test_share is {test_share}; it must lie strictly between 0 and 1")


def _time_windows(rows: pl.DataFrame, label_share: float) -> Windows:
    row_c = _cut_row(rows["timestamp"], rows.height * (1 - label_share))
    row_b = _cut_row(rows["timestamp"][:row_c], rows.height * (1 - 2 * label_share))
    return Windows(
        kind="time",
        history_b=rows[:row_b],
        labels_b=rows[row_b:row_c],
        history_c=rows[:row_c],
        labels_c=rows[row_c:],
        start_b=_start(rows, row_b),
        start_c=_start(rows, row_c),
        end=end_of(rows),
        reason="Global cuts in time, as asked for.",
    )


def _last_windows(rows: pl.DataFrame, reason: str) -> Windows:
    n_rows = pl.len().over("user_id")
    in_c = (_from_last() == 0) & (n_rows >= _MIN_HISTORY + 1)
    in_b = (_from_last() == 1) & (n_rows >= _MIN_HISTORY + 2)
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


def _ordered(interactions: pl.DataFrame) -> pl.DataFrame:
    """The same rows, ordered by content alone."""
    return interactions.sort(list(dict.fromkeys(["timestamp", "user_id", "item_id", *interactions.columns])))


def _cut_row(timestamps: pl.Series, target: float) -> int:
    """The row nearest to `target` at which a later timestamp begins; the number of rows where none does."""
    starts = np.flatnonzero(np.diff(timestamps.to_physical().to_numpy())) + 1
    if starts.size == 0:
        return len(timestamps)
    return int(starts[np.abs(starts - target).argmin()])


def _start(rows: pl.DataFrame, row: int) -> datetime:
    """The timestamp of `row`, or the end of all rows where `row` lies behind the last one."""
    return cast(datetime, rows["timestamp"][row]) if row < rows.height else end_of(rows)


def _from_last() -> pl.Expr:
    """Position of a row counted from its user's last one, which is 0; for rows in content order."""
    return pl.int_range(pl.len() - 1, -1, -1).over("user_id")


def _n_known(labels: pl.DataFrame, history: pl.DataFrame) -> int:
    return labels.select("user_id").unique().join(history, on="user_id", how="semi").height


def _n_unseen(test: pl.DataFrame, train: pl.DataFrame, column: str) -> int:
    return test.select(column).unique().join(train, on=column, how="anti").height
