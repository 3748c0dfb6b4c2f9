"""Simple recommenders that every table of results holds: popularity, item neighbours, repeat purchase.

Owns what a list without learned text or ranking looks like. All four are fit on the canonical tables, know
only rows before `as_of`, recommend available items of the items table alone and break ties by `item_id`.
They take no part in the product's own candidate retrieval and are not saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from recsys.errors import InvalidConfig, NotFitted

FloatArray = npt.NDArray[np.float64]
RowArray = npt.NDArray[np.int32]

_BLOCK = 1 << 22  # scores held at once: 32 MiB
_ITEM_BLOCK = 128  # items whose co-occurrences with all others are held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is known at a moment, by row number.

    Attributes:
        user_ids: Sorted ids of the users with rows.
        item_ids: Sorted ids of the items table.
        available: Bool (n_items,).
        events: Frame `user_row`, `item_row`, `timestamp` of all events with items of the items table.
        as_of: Exclusive upper bound of `timestamp`.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    available: npt.NDArray[np.bool_]
    events: pl.DataFrame
    as_of: datetime

    @classmethod
    def build(cls, interactions: pl.DataFrame, items: pl.DataFrame, as_of: datetime) -> Self:
        """From the canonical tables, of what lies before `as_of`."""
        items = items.select("item_id", "available").sort("item_id").with_row_index("item_row")
        known = interactions.filter(pl.col("timestamp") < as_of).join(items, on="item_id")
        users = known.select("user_id").unique().sort("user_id").with_row_index("user_row")
        events = known.join(users, on="user_id").sort("timestamp", "user_id", "item_id")
        return cls(
            user_ids=users["user_id"],
            item_ids=items["item_id"],
            available=items["available"].to_numpy(),
            events=events.select("user_row", "item_row", "timestamp"),
            as_of=as_of,
        )

    def matrix(self, events: pl.DataFrame, values: FloatArray) -> Any:
        """Sparse float64 (n_users, n_items): the sum of `values` over the events of each pair."""
        rows, columns = events["user_row"].to_numpy(), events["item_row"].to_numpy()
        return sparse.csr_array((values, (rows, columns)), shape=(len(self.user_ids), len(self.item_ids)))

    def pairs(self, events: pl.DataFrame) -> Any:
        """Sparse float64 (n_users, n_items): 1 for each distinct pair of `events`."""
        distinct = events.select("user_row", "item_row").unique()
        return self.matrix(distinct, np.ones(distinct.height))

    def user_rows(self, user_ids: pl.Series) -> RowArray:
        """Int32 (n,), -1 for unknown users."""
        known = self.user_ids.to_frame("user_id").with_row_index("row")
        asked = user_ids.to_frame("user_id").join(known, on="user_id", how="left", maintain_order="left")
        return asked["row"].cast(pl.Int32).fill_null(-1).to_numpy()


class Baseline(ABC):
    """`fit` and `recommend` around general scores, and the scores that a user has for himself."""

    _log: Log | None = None

    def fit(self, interactions: pl.DataFrame, items: pl.DataFrame, *, as_of: datetime) -> Self:
        """Learn from the rows before `as_of`.

        Args:
            interactions: Canonical interactions; rows of items that `items` lacks are not used.
            items: Canonical items; `item_id` and `available` are read.
            as_of: Exclusive upper bound in UTC.
        """
        log = Log.build(interactions, items, as_of)
        self._seen = log.pairs(log.events)
        self._general = self._learn(log, popularity=_column_sums(self._seen))
        self._log = log
        return self

    def recommend(self, user_ids: pl.Series, k: int, *, filter_seen: bool) -> pl.DataFrame:
        """The k best available items of each user.

        Args:
            user_ids: Whom to recommend to; ids given twice get one list. Unknown users get popularity.
            k: Length of the lists, at least 1; lists are shorter where fewer items are allowed.
            filter_seen: Whether to leave out the items of the user's own rows.

        Returns:
            Frame `user_id`, `item_id`, `rank` (Int32, from 1), `score` (Float64, higher is better), users in
            the order given and each list best first; equal scores are ordered by item_id.

        Raises:
            InvalidConfig: `k` is below 1.
            NotFitted: `fit` was not called.
        """
        if k < 1:
            raise InvalidConfig(f"k is {k}; it must be at least 1")
        if self._log is None:
            raise NotFitted(f"{type(self).__name__} is not fitted; call fit before recommend")
        asked = user_ids.unique(maintain_order=True)
        rows = self._log.user_rows(asked)
        size = max(1, _BLOCK // max(1, len(self._log.item_ids)))
        lists = [
            best
            for start in range(0, len(rows), size)
            for best in self._block(self._log, rows[start : start + size], k, filter_seen)
        ]
        return _frame(asked, self._log.item_ids, lists)

    def _block(
        self, log: Log, rows: RowArray, k: int, filter_seen: bool
    ) -> list[tuple[npt.NDArray[np.intp], FloatArray]]:
        """The (item rows, scores) of each list."""
        scores = np.tile(self._general, (len(rows), 1))  # (users of the block, n_items)
        known = np.flatnonzero(rows >= 0)
        own = self._own(rows[known]).tocoo()
        scores[known[own.row], own.col] = own.data
        if filter_seen:
            seen = self._seen[rows[known]].tocoo()
            scores[known[seen.row], seen.col] = -np.inf
        scores[:, ~log.available] = -np.inf
        return [_best_allowed(user_scores, k) for user_scores in scores]

    @abstractmethod
    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        """Learn own scores, if any; the general scores (n_items,), for users and items without them."""

    def _own(self, rows: RowArray) -> Any:
        """Sparse (len(rows), n_items), stored entries >= 0: what known users score instead of the general."""
        return sparse.csr_array((len(rows), len(self._general)))


class Popular(Baseline):
    """Score: the number of distinct users of an item."""

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        return popularity


class RecentPopular(Baseline):
    """Score: the number of distinct users of an item in the last `days` before `as_of`.

    Items without any in that time follow by all-time popularity, with scores below 0.

    Args:
        days: Length of the time looked at, above 0.

    Raises:
        InvalidConfig: `days` is not above 0.
    """

    def __init__(self, days: float = 30) -> None:
        self._days = positive("days", days)

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        recent = log.events.filter(pl.col("timestamp") >= log.as_of - timedelta(days=self._days))
        n_users = _column_sums(log.pairs(recent))
        return np.where(n_users > 0, n_users, below_zero(popularity))


class ItemKNN(Baseline):
    """Score: the sum, over the items of the user's history, of their cosine to the item.

    The cosine of two items is that of their columns in the binary user-item matrix; each item of the history
    votes for its `n_neighbours` nearest available items. Items without a vote follow by popularity, with
    scores below 0.
    Source: Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms", section 3.

    Args:
        n_neighbours: Neighbours kept for each item, at least 1.

    Raises:
        InvalidConfig: `n_neighbours` is below 1.
    """

    def __init__(self, n_neighbours: int = 200) -> None:
        if n_neighbours < 1:
            raise InvalidConfig(f"n_neighbours is {n_neighbours}; it must be at least 1")
        self._n_neighbours = n_neighbours

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        self._neighbours = _cosine_neighbours(self._seen, log.available, self._n_neighbours)
        return below_zero(popularity)

    def _own(self, rows: RowArray) -> Any:
        return self._seen[rows] @ self._neighbours


class BuyAgain(Baseline):
    """Score: the sum, over the user's own events with the item, of 0.5 ** (age / half life).

    Items the user never had follow by popularity, with scores below 0; where seen items are left out, only
    they remain.

    Args:
        half_life_days: Age in days at which an event counts half, above 0; infinity counts events.

    Raises:
        InvalidConfig: `half_life_days` is not above 0.
    """

    def __init__(self, half_life_days: float = 30) -> None:
        self._half_life = positive("half_life_days", half_life_days)

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        age = pl.lit(log.as_of).cast(pl.Datetime("us", "UTC")) - pl.col("timestamp")
        age_days = log.events.select(age.dt.total_microseconds() / 86_400e6).to_series().to_numpy()
        self._again = log.matrix(log.events, 0.5 ** (age_days / self._half_life))
        return below_zero(popularity)

    def _own(self, rows: RowArray) -> Any:
        return self._again[rows]


def _cosine_neighbours(seen: Any, available: npt.NDArray[np.bool_], n_neighbours: int) -> Any:
    """Sparse (n_items, n_items): row j holds the cosines of the `n_neighbours` available items nearest to j.

    Co-occurrences are whole numbers, so equal cosines are equal to the last bit and ties stay ties.
    """
    by_item = seen.T.tocsr()  # (n_items, n_users)
    candidates = (seen @ sparse.diags_array(available.astype(np.float64))).tocsr()
    candidates.eliminate_zeros()
    n_users = _column_sums(seen)
    columns, cosines = [], []
    for start in range(0, len(available), _ITEM_BLOCK):
        together = by_item[start : start + _ITEM_BLOCK] @ candidates  # (items of the block, n_items)
        for row in range(together.shape[0]):
            span = slice(together.indptr[row], together.indptr[row + 1])
            item, others = start + row, together.indices[span]
            cosine = together.data[span] / np.sqrt(n_users[item] * n_users[others])
            cosine[others == item] = 0
            best = _best(cosine, others, n_neighbours)
            best = best[cosine[best] > 0]
            columns.append(others[best])
            cosines.append(cosine[best])
    return _from_rows(columns, cosines)


def _from_rows(columns: list[RowArray], values: list[FloatArray]) -> Any:
    """Square sparse matrix with the given entries in each row."""
    ends = np.cumsum([0, *map(len, columns)])
    data, indices = (np.concatenate(parts) if parts else np.empty(0) for parts in (values, columns))
    return sparse.csr_array((data, indices, ends), shape=(len(columns), len(columns)))


def _best(scores: FloatArray, rows: npt.NDArray[Any], k: int) -> npt.NDArray[np.intp]:
    """Positions of the k highest scores, best first; equal scores by `rows`, smallest first."""
    n = len(scores)
    keep = np.arange(n) if k >= n else np.flatnonzero(scores >= np.partition(scores, n - k)[n - k])
    return keep[np.lexsort((rows[keep], -scores[keep]))[:k]]


def _best_allowed(scores: FloatArray, k: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    allowed = np.flatnonzero(scores > -np.inf)
    best = allowed[_best(scores[allowed], allowed, k)]
    return best, scores[best]


def _frame(users: pl.Series, item_ids: pl.Series, lists: list[tuple[npt.NDArray[np.intp], FloatArray]]) -> pl.DataFrame:
    sizes = np.array([len(rows) for rows, _ in lists], dtype=np.int64)
    ranks = np.concatenate([np.arange(1, size + 1) for size in sizes] or [np.empty(0)])
    item_rows = np.concatenate([rows for rows, _ in lists] or [np.empty(0, dtype=np.intp)])
    return pl.DataFrame(
        {
            "user_id": users.gather(np.repeat(np.arange(len(users)), sizes)),
            "item_id": item_ids.gather(item_rows),
            "rank": pl.Series(ranks).cast(pl.Int32),
            "score": np.concatenate([scores for _, scores in lists] or [np.empty(0)]),
        }
    )


def _column_sums(matrix: Any) -> FloatArray:
    return np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()


def below_zero(popularity: FloatArray) -> FloatArray:
    """The same order in [-1, 0), below every own score."""
    return np.asarray(popularity / (popularity.max(initial=0) + 1) - 1, dtype=np.float64)


def positive(name: str, value: float) -> float:
    """The value, or InvalidConfig where it is not above 0."""
    if not value > 0:
        raise InvalidConfig(f"{name} is {value}; it must be above 0")
    return value
