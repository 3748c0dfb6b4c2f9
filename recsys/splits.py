"""Time: train and test for evaluation.

Together with `recsys/windows.py`, which cuts what a fit learns from, it owns every decision about which interactions
lie before and which after a moment; no other module slices interactions by time. It does not validate tables (schema),
compute features or draw negatives.

All functions take the canonical interactions table: `user_id`, `item_id`, `timestamp` (Datetime, UTC) and
further columns, which are carried along. Rows are ordered by content first (timestamp, user, item, then
the other columns), so the order in which rows come never changes an answer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

import numpy as np
import polars as pl

from recsys.errors import InvalidConfig, InvalidData

SplitKind = Literal["time", "rolling", "leave-last-out", "random"]

TICK = timedelta(seconds=1)


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
    rows = in_order(interactions)
    first_test = cut_row(rows["timestamp"], rows.height * (1 - test_share))
    train, test = rows[:first_test], rows[first_test:]
    as_of = start_at(rows, first_test)
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
    rows = in_order(interactions)
    if not repeats:
        rows = rows.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    enough = pl.col("item_id").n_unique().over("user_id") >= min_items
    held_out = enough & (from_last() == 0)
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
    rows = in_order(interactions)
    targets = [rows.height * (1 - test_share * (n_cuts - place) / n_cuts) for place in range(n_cuts)]
    starts = sorted({cut_row(rows["timestamp"], target) for target in targets})
    ends = [*starts[1:], rows.height]
    notes = (
        f"Rolling: {len(starts)} global cuts; every test lasts until the next cut, and each system is fitted anew.",
    )
    return tuple(
        Split(kind="rolling", train=rows[:start], test=rows[start:end], as_of=start_at(rows, start), notes=notes)
        for start, end in zip(starts, ends, strict=True)
    )


def random_split(interactions: pl.DataFrame, *, test_share: float = 0.1, seed: int = 0) -> Split:
    """A `test_share` of the rows, drawn at random, is the test. It leaks the future of every user, and says so.

    Raises:
        InvalidConfig: `test_share` is out of range.
        InvalidData: `interactions` has no rows.
    """
    _check_share(test_share)
    rows = in_order(interactions)
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


def end_of(interactions: pl.DataFrame) -> datetime:
    """One second after the last row, in UTC: the exclusive `as_of` under which every row is known.

    Raises:
        InvalidData: `interactions` has no rows.
    """
    if interactions.is_empty():
        raise InvalidData(table="interactions", rule="must not be empty", remedy="Pass at least 1 row")
    return cast(datetime, interactions["timestamp"].max()) + TICK


def _check_share(test_share: float) -> None:
    if not 0 < test_share < 1:
        raise InvalidConfig(f"test_share is {test_share}; it must lie strictly between 0 and 1")


def in_order(interactions: pl.DataFrame) -> pl.DataFrame:
    """The same rows, ordered by content alone."""
    return interactions.sort(list(dict.fromkeys(["timestamp", "user_id", "item_id", *interactions.columns])))


def cut_row(timestamps: pl.Series, target: float) -> int:
    """The row nearest to `target` at which a later timestamp begins; the number of rows where none does."""
    starts = np.flatnonzero(np.diff(timestamps.to_physical().to_numpy())) + 1
    if starts.size == 0:
        return len(timestamps)
    return int(starts[np.abs(starts - target).argmin()])


def start_at(rows: pl.DataFrame, row: int) -> datetime:
    """The timestamp of `row`, or the end of all rows where `row` lies behind the last one."""
    return cast(datetime, rows["timestamp"][row]) if row < rows.height else end_of(rows)


def from_last() -> pl.Expr:
    """Position of a row counted from its user's last one, which is 0; for rows in content order."""
    return pl.int_range(pl.len() - 1, -1, -1).over("user_id")


def _n_unseen(test: pl.DataFrame, train: pl.DataFrame, column: str) -> int:
    return test.select(column).unique().join(train, on=column, how="anti").height
