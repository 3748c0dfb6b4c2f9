"""Behavioural features as of a moment, one implementation for training and for serving.

Owns counts, recency, trends, rates and affinities of users, items and pairs of them. Every number is computed from the
history handed in, which must hold nothing at or after the moment: the caller cuts (and `build_features` refuses a
history that was cut too late). What everybody did with an item is `ranking/statistics.py`, what a candidate has in
common with the history `ranking/similarity.py`. Scores of stage 1 and of the interest model are columns of the pairs
already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.statistics import DAY, ITEM, USER, FeatureConfig, ItemTable, item_statistics

__all__ = ["DAY", "Columns", "FeatureConfig", "ItemTable", "build_features", "feature_names", "item_statistics"]

Rows = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Columns = dict[str, npt.NDArray[Any]]
"""A table of pairs as arrays by name, NaN where there is nothing: a frame of as many columns takes a request longer to
put together than to fill."""


@dataclass(frozen=True, slots=True)
class _Events:
    """The history in order of user, then time: `users`, `items`, `kinds` int64, `days` and `age` in days, float64."""

    users: Rows
    items: Rows
    kinds: Rows
    days: Numbers
    age: Numbers


@dataclass(frozen=True, slots=True)
class _Groups:
    """Events that share a key: distinct `keys` ascending, and the events in their `order`, each key from its start."""

    keys: Rows
    starts: Rows
    order: Rows

    @classmethod
    def of(cls, keys: Rows) -> "_Groups":
        """Group by key; within a group events keep their order."""
        size = max(len(keys), 1)
        key, order = np.divmod(np.sort(keys * size + np.arange(len(keys))), size)  # faster than a stable argsort
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        return cls(key[starts], starts, order)

    def sizes(self) -> Numbers:
        """Events of each group."""
        return np.diff(self.starts, append=len(self.order)).astype(np.float64)

    def first(self, values: Numbers) -> Numbers:
        """Of the oldest event of each group."""
        return values[self.order[self.starts]]

    def last(self, values: Numbers) -> Numbers:
        """Of the newest event of each group."""
        ends: Rows = np.append(self.starts, len(self.order))[1:]
        return values[self.order[ends - 1]]

    def sum(self, values: npt.NDArray[np.generic]) -> Numbers:
        """Of each group; NaN counts as nothing."""
        total: Numbers = np.add.reduceat(np.nan_to_num(values[self.order].astype(np.float64)), self.starts)
        return total

    def days(self, days: Numbers) -> Numbers:
        """Distinct days of each group."""
        day = np.floor(days)[self.order]
        new = np.diff(day, prepend=np.nan) != 0
        new[self.starts] = True
        return np.add.reduceat(new.astype(np.float64), self.starts)

    def places(self, keys: Rows) -> Rows:
        """Where each key lies among the groups; -1 where it does not."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[found] == keys, found, -1)


def build_features(
    pairs: Columns,
    history: pl.DataFrame,
    table: ItemTable,
    moments: pl.DataFrame,
    config: FeatureConfig,
    kinds: Sequence[str] = (),
) -> Columns:
    """Add behavioural features to (user, item) pairs.

    Args:
        pairs: `user_row`, `item_row` and any further columns, which stay as they are.
        history: `user_row`, `item_row`, `seconds` and, with `kinds`, `event_row` of the pairs' users, all before each
            user's moment.
        table: of the items.
        moments: `user_row`, `moment` (Float64, Unix seconds), one row for every user of the pairs.
        config: windows.
        kinds: names of the kinds of events, by `event_row`.

    Returns:
        The pairs in their order with float32 columns `pair_*`, `user_*`, `item_*` and `<group>_*` added; NaN where
        there is nothing to count from.

    Raises:
        ValueError: a history row lies at or after its user's moment.
    """
    users, items = (pairs[name].astype(np.int64) for name in (USER, ITEM))
    known = moments[USER].to_numpy()
    moment = np.full(int(known.max(initial=0)) + 1, np.nan)
    moment[known] = moments["moment"].to_numpy()
    events = _events(history, moment)
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing to count from is NaN
        columns = _user_features(events, users, config, kinds)
        columns |= _pair_features(events, users, items, len(table), columns["user_events"], config)
        for key, codes in table.codes.items():
            columns |= _affinity(events, users, items, codes, key, columns["user_events"])
        columns |= _taste(events, users, items, table)
        columns |= _clock(table, items, moment[users])
    shown = dict(zip(table.names, table.values[items].T, strict=True))
    return pairs | shown | {name: values.astype(np.float32) for name, values in columns.items()}


def feature_names(frame: pl.DataFrame, *, exclude: tuple[str, ...]) -> list[str]:
    """Names of the columns a ranker may read: everything numeric or boolean that is not excluded."""
    numeric = [name for name, dtype in frame.schema.items() if dtype.is_numeric() or dtype == pl.Boolean]
    return [name for name in numeric if name not in exclude]


def _events(history: pl.DataFrame, moment: Numbers) -> _Events:
    """History as arrays, checked.

    Raises:
        ValueError: a row lies at or after its user's moment.
    """
    users, items = (history[name].to_numpy().astype(np.int64) for name in (USER, ITEM))
    seconds = history["seconds"].to_numpy()
    age = (moment[users] - seconds) / DAY
    late = np.flatnonzero(age <= 0)
    if len(late):
        first = {**history.row(int(late[0]), named=True), "moment": float(moment[users[late[0]]])}
        raise ValueError(
            f"features: {len(late)} history rows lie at or after their user's moment, first: {first}; "
            "cut the history before the moment"
        )
    kinds = history["event_row"].to_numpy().astype(np.int64) if "event_row" in history.columns else np.zeros_like(users)
    order = np.lexsort((seconds, users))
    return _Events(users[order], items[order], kinds[order], seconds[order] / DAY, age[order])


def _at(values: npt.NDArray[np.floating], places: Rows, missing: float = np.nan) -> Numbers:
    """`values[places]`, `missing` where a place is -1."""
    return np.append(values, missing)[places]


def _user_features(events: _Events, users: Rows, config: FeatureConfig, kinds: Sequence[str]) -> Columns:
    """How active the user is, how often he repeats and what kinds of events he leaves."""
    groups = _Groups.of(events.users)
    width = int(events.items.max(initial=0)) + 1
    distinct = _Groups.of(events.users * width + events.items).keys // width
    count, days = groups.sizes(), groups.days(events.days)
    n_items = np.diff(np.searchsorted(distinct, np.append(groups.keys, np.iinfo(np.int64).max))).astype(np.float64)
    recent = {n: groups.sum(events.age <= n) for n in config.windows_days}
    table = {
        "user_events": count,
        "user_items": n_items,
        "user_days": days,
        "user_days_since_last": groups.last(events.age),
        "user_days_since_first": groups.first(events.age),
        **{f"user_events_{n}d": values for n, values in recent.items()},
        "user_repeat_share": 1 - n_items / count,
        "user_events_per_day": count / days,
        "user_trend": (recent[config.windows_days[0]] + 1) / (recent[config.windows_days[-1]] + 1),
    }
    if len(kinds) > 1:
        table |= {f"user_rate_{name}": groups.sum(events.kinds == row) / count for row, name in enumerate(kinds)}
    places = groups.places(users)
    return {name: _at(values, places) for name, values in table.items()}


def _pair_features(
    events: _Events,
    users: Rows,
    items: Rows,
    n_items: int,
    user_events: npt.NDArray[np.floating],
    config: FeatureConfig,
) -> Columns:
    """What the user did with this very item."""
    groups = _Groups.of(events.users * n_items + events.items)
    places = groups.places(users * n_items + items)
    newest, oldest, days = groups.last(events.age), groups.first(events.age), groups.days(events.days)
    interval = np.where(days > 1, (oldest - newest) / (days - 1), np.nan)
    count = _at(groups.sizes(), places, 0.0)
    return {
        "pair_count": count,
        "pair_days": _at(days, places, 0.0),
        "pair_days_since_last": _at(newest, places),
        "pair_days_since_first": _at(oldest, places),
        **{f"pair_count_{n}d": _at(groups.sum(events.age <= n), places, 0.0) for n in config.windows_days},
        "pair_interval": _at(interval, places),
        "pair_overdue": _at(newest / interval, places),
        "pair_share": count / user_events,
    }


def _affinity(
    events: _Events,
    users: Rows,
    items: Rows,
    codes: Rows,
    key: str,
    user_events: npt.NDArray[np.floating],
) -> Columns:
    """What the user did with items of the same group."""
    width = len(codes) + 1  # there are no more groups than items, and one for items without
    groups = _Groups.of(events.users * width + codes[events.items])
    places = groups.places(users * width + codes[items])
    count = _at(groups.sizes(), places, 0.0)
    return {
        f"user_{key}_count": count,
        f"user_{key}_days_since_last": _at(groups.last(events.age), places),
        f"user_{key}_share": count / user_events,
    }


def _taste(events: _Events, users: Rows, items: Rows, table: ItemTable) -> Columns:
    """How popular and how dear the user's items are, and how far the candidate lies from that."""
    groups = _Groups.of(events.users)
    places = groups.places(users)
    popularity = table.values[:, table.names.index("item_popularity_percentile")]
    usual = _at(groups.sum(popularity[events.items]) / groups.sizes(), places)
    columns: Columns = {"user_popularity_mean": usual, "pair_popularity_gap": popularity[items] - usual}
    if table.price is not None:
        paid, price = table.price[events.items], table.price[items]
        mean = _at(groups.sum(paid) / groups.sum(~np.isnan(paid)), places)
        columns |= {"user_price_mean": mean, "user_price_gap": _ratio(price - mean, mean)}
        columns["user_price_percentile"] = _percentiles(events.users, paid, users, price)
    return columns


def _ratio(part: Numbers, whole: Numbers) -> Numbers:
    """`part / whole`, NaN where the whole is zero."""
    return np.where(whole == 0, np.nan, part / whole)


def _percentiles(owners: Rows, paid: Numbers, users: Rows, price: Numbers) -> Numbers:
    """Share of the user's own prices that are not above the given one, NaN without any."""
    known = ~np.isnan(paid)
    levels = np.unique(paid[known])
    ladder = np.sort(owners[known] * (len(levels) + 1) + np.searchsorted(levels, paid[known]))
    base = users * (len(levels) + 1)
    first = np.searchsorted(ladder, base)
    below = np.searchsorted(ladder, base + np.searchsorted(levels, price, side="right")) - first
    total = np.searchsorted(ladder, base + len(levels) + 1) - first
    return np.where(np.isnan(price), np.nan, below / total)


def _clock(table: ItemTable, items: Rows, moment: Numbers) -> Columns:
    """How much more often than others the item, and its category, is taken at the hour and weekday of the moment."""
    places: Mapping[str, Rows] = {
        "hour": (moment % DAY // 3600).astype(np.int64),
        "weekday": (moment // DAY % 7).astype(np.int64),
    }
    return {f"{name}_lift": lifts[items, places[name.rsplit("_", 1)[1]]] for name, lifts in table.clocks.items()}
