"""What all users together did with each item before a moment: one row an item.

Owns counts, recency, trends, popularity, kinds of events and times of day of the items and of their groups. What a
single user did is `ranking/features.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

DAY = 86_400.0
USER, ITEM, PRICE = "user_row", "item_row", "item__price"
CLOCKS = ("item_hour", "item_weekday", "category_hour", "category_weekday")
CLOCK_PRIOR = 10.0  # events at usual times that every item and category is given, so that few events say little


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """Which windows are counted, and how much of a history candidates are compared with.

    Attributes:
        windows_days: lengths of the windows before the moment, in days, ascending.
        similar_length: newest events that a candidate's similarity to the history is taken over.
    """

    windows_days: tuple[int, ...] = (7, 30, 90)
    similar_length: int = 20

    def __post_init__(self) -> None:
        if not self.windows_days or min(self.windows_days) < 1:
            raise ValueError(f"features: windows_days={self.windows_days} must be positive whole days")
        if list(self.windows_days) != sorted(set(self.windows_days)):
            raise ValueError(f"features: windows_days={self.windows_days} must ascend without repetition")
        if self.similar_length < 1:
            raise ValueError(f"features: similar_length={self.similar_length} must be at least 1")


@dataclass(frozen=True, slots=True)
class ItemTable:
    """Item statistics as arrays, so that a request gathers the rows of its candidates and no more.

    Attributes:
        names: of the features.
        values: float32 (n_items, n_features), NaN where nothing is known.
        codes: group keys, int64 (n_items,), by name.
        clocks: float32 (n_items, 24 or 7), by name, those of `CLOCKS` that are there.
        price: float64 (n_items,) of the column `item__price`, NaN without one; None where no item has one.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float32]
    codes: Mapping[str, npt.NDArray[np.int64]]
    clocks: Mapping[str, npt.NDArray[np.float32]]
    price: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, statistics: pl.DataFrame) -> Self:
        """From what `item_statistics` gives and any further numeric columns, in order of `item_row`."""
        keys = [name for name, dtype in statistics.schema.items() if dtype == pl.Int32 and name != ITEM]
        names = tuple(name for name in statistics.columns if name not in (ITEM, *keys, *CLOCKS))
        has_price = PRICE in names and statistics[PRICE].null_count() < statistics.height
        return cls(
            names,
            np.ascontiguousarray(statistics.select(pl.col(names).cast(pl.Float32)).to_numpy()),
            {name: statistics[name].to_numpy().astype(np.int64) for name in keys},
            {name: statistics[name].to_numpy() for name in CLOCKS if name in statistics.columns},
            statistics[PRICE].cast(pl.Float64).to_numpy() if has_price else None,
        )

    def __len__(self) -> int:
        """Number of items."""
        return len(self.values)


def item_statistics(
    history: pl.DataFrame,
    groups: pl.DataFrame,
    moment: float,
    config: FeatureConfig,
    *,
    kinds: Sequence[str] = (),
    clock: bool = False,
) -> pl.DataFrame:
    """What all users together did with each item before the moment.

    Args:
        history: `user_row`, `item_row`, `seconds` (Float64, Unix time) and, with `kinds`, `event_row` of all users.
        groups: `item_row` and group keys of every item (`text`, and any others; Int32), in order of `item_row`.
        moment: Unix seconds; every history row lies before it.
        config: windows.
        kinds: names of the kinds of events, by `event_row`.
        clock: whether hours and weekdays are counted, where the times have hours.

    Returns:
        One row an item, in order of `item_row`: the group keys, Float32 columns `item_*` and `<group>_*`, and for the
        clock columns of 24 or 7 numbers (`CLOCKS`). Items without history have counts of zero and null recency.

    Raises:
        ValueError: a history row lies at or after the moment.
    """
    late = history.filter(pl.col("seconds") >= moment)
    if late.height:
        raise ValueError(
            f"features: {late.height} history rows lie at or after the moment {moment}, first: "
            f"{late.row(0, named=True)}; cut the history before the moment"
        )
    windows = [f"item_count_{days}d" for days in config.windows_days]
    counts = _counts(history, moment, config, kinds)
    table = groups.join(counts, on=ITEM, how="left").sort(ITEM)
    table = table.with_columns(pl.col("item_count", "item_users", *windows).fill_null(0))
    keys = [name for name in groups.columns if name != ITEM]
    short, middle, long = (pl.col(windows[place]) + 1 for place in (0, len(windows) // 2, -1))
    table = table.with_columns(
        item_repeat_rate=pl.col("item_count") / pl.col("item_users"),
        item_trend=short / long,
        item_acceleration=short * long / middle.cast(pl.Float64).pow(2),
        item_share_of_text=pl.col("item_count") / pl.col("item_count").sum().over("text"),
        item_popularity_percentile=_percentile("item_count"),
        **{f"item_popularity_percentile_{config.windows_days[0]}d": _percentile(windows[0])},
        **{f"{key}_popularity": pl.col("item_count").sum().over(key) for key in keys},
        **{f"{key}_trend": _group_trend(windows[0], windows[-1], key) for key in keys},
    ).select(ITEM, *keys, pl.exclude(ITEM, *keys).cast(pl.Float32).fill_nan(None))
    return table.with_columns(_clocks(history, groups)) if clock else table


def _counts(history: pl.DataFrame, moment: float, config: FeatureConfig, kinds: Sequence[str]) -> pl.DataFrame:
    """Counts, recency and kinds of events of the items that have a history."""
    age = (moment - pl.col("seconds")) / DAY
    rates = {f"item_rate_{name}": (pl.col("event_row") == row).mean() for row, name in enumerate(kinds)}
    return history.group_by(ITEM).agg(
        item_count=pl.len(),
        item_users=pl.col(USER).n_unique(),
        item_days_since_last=age.min(),
        item_days_since_first=age.max(),
        **{f"item_count_{days}d": (age <= days).sum() for days in config.windows_days},
        **(rates if len(kinds) > 1 else {}),
    )


def _percentile(name: str) -> pl.Expr:
    """Place among all items, from 0 to 1, equal ones in the middle of their places."""
    return pl.col(name).rank("average") / pl.len()


def _group_trend(short: str, long: str, key: str) -> pl.Expr:
    return (pl.col(short).sum().over(key) + 1) / (pl.col(long).sum().over(key) + 1)


def _clocks(history: pl.DataFrame, groups: pl.DataFrame) -> list[pl.Series]:
    """The columns `CLOCKS`: how much more often than all together items and categories are taken at a time.

    NaN where all events lie at one time of the day: such times are dates.
    """
    seconds, items = history["seconds"].to_numpy(), history[ITEM].to_numpy()
    if not len(seconds) or np.ptp(seconds % DAY) == 0.0:
        seconds, items = seconds[:0], items[:0]  # a date says nothing of hours
    times = {"hour": ((seconds % DAY // 3600).astype(np.int64), 24), "weekday": ((seconds // DAY % 7).astype(int), 7)}
    rows = {"item": np.arange(groups.height)}
    if "category" in groups.columns:
        rows["category"] = groups["category"].to_numpy()
    return [
        pl.Series(f"{name}_{unit}", _lifts(codes[items], slots, int(codes.max(initial=0)) + 1, n)[codes])
        for name, codes in rows.items()
        for unit, (slots, n) in times.items()
    ]


def _lifts(
    codes: npt.NDArray[np.integer], slots: npt.NDArray[np.integer], n_codes: int, n_slots: int
) -> npt.NDArray[np.float32]:
    """Share of each code's events in each slot over the share of all events in it, float32 (n_codes, n_slots).

    Shrunk to 1 where there are few events; NaN for a code without any and for a slot that nobody used.
    """
    places = codes.astype(np.int64) * n_slots + slots
    counts = np.bincount(places, minlength=n_codes * n_slots).reshape(n_codes, n_slots)
    total = counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = counts.sum(axis=0) / counts.sum()
        lifts = (counts + CLOCK_PRIOR * usual) / (total + CLOCK_PRIOR) / usual
    return np.where(total > 0, lifts, np.nan).astype(np.float32)
