"""Ranking metrics with binary relevance, and bootstrap intervals over users.

Owns the definition of every number that evaluation reports. Pure functions of frames and arrays; it makes no
split, fits nothing and prints nothing. Every metric is full ranking (no sampled negatives) and is given for
each user, so that two systems can be compared user by user. The definitions equal those of trec_eval, in
which a list shorter than k is a list that misses below its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import InvalidConfig, InvalidData

FloatArray = npt.NDArray[np.float64]

_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads the users over all keys
_ROWS = 500_000  # rows of lists that are put in order at once
_BLOCK = 1 << 22  # bootstrap counts held at once: 32 MiB


@dataclass(frozen=True, slots=True)
class Hits:
    """Where each user's relevant items lie in his list.

    Attributes:
        users: The ids of all users of the truth, sorted; users without recommendations are among them.
        hits: Bool (n_users, k); `hits[u, r]` says whether the item at rank r + 1 is relevant to user u.
        n_relevant: Int64 (n_users,), at least 1: distinct relevant items, found or not.
    """

    users: pl.Series
    hits: npt.NDArray[np.bool_]
    n_relevant: npt.NDArray[np.int64]


def hit_matrix(recommended: pl.DataFrame, truth: pl.DataFrame, k: int) -> Hits:
    """Mark the relevant items among each user's first k.

    A list is a user's distinct items in the order of `rank`, equal ranks by `item_id`: an item that is
    recommended twice holds its first place only, and what stands below it moves up. Users without truth are
    left out, pairs of the truth that come twice count once.

    Args:
        recommended: Frame `user_id`, `item_id`, `rank` (1 is best), or what `first_k` made of it; further columns
            are ignored.
        truth: Frame `user_id`, `item_id` of relevant pairs, ids in the same types.
        k: Length of the lists, at least 1.

    Raises:
        InvalidConfig: `k` is below 1.
    """
    pairs = truth.select("user_id", "item_id").unique()
    users = pairs.group_by("user_id").agg(n_relevant=pl.len()).sort("user_id").with_row_index("row")
    pairs = pairs.join(users.select("user_id", "row"), on="user_id")
    found = pl.concat([part.join(pairs, on=["user_id", "item_id"]) for part in _slices(first_k(recommended, k))])
    hits = np.zeros((users.height, k), dtype=np.bool_)
    hits[found["row"].to_numpy(), found["place"].to_numpy()] = True
    return Hits(users["user_id"], hits, users["n_relevant"].cast(pl.Int64).to_numpy())


def ndcg(hits: Hits, k: int) -> FloatArray:
    """Normalised discounted cumulative gain at k, (n_users,) in [0, 1].

    DCG = sum over hit ranks r <= k of 1 / log2(r + 1), divided by that of the best possible list, which has
    min(k, n_relevant) hits from rank 1 on.
    Source: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", with binary
    gain and the logarithmic discount of trec_eval's `ndcg_cut`.
    """
    top = _first(hits, k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discount)[np.minimum(hits.n_relevant, k) - 1]
    return np.asarray(top @ discount / best, dtype=np.float64)


def recall(hits: Hits, k: int) -> FloatArray:
    """Share of a user's relevant items that lie in the first k, (n_users,). Source: trec_eval `recall`."""
    return np.asarray(_n_hits(hits, k) / hits.n_relevant, dtype=np.float64)


def precision(hits: Hits, k: int) -> FloatArray:
    """Hits in the first k divided by k, however short the list is, (n_users,). Source: trec_eval `P`."""
    return np.asarray(_n_hits(hits, k) / k, dtype=np.float64)


def hitrate(hits: Hits, k: int) -> FloatArray:
    """1 where at least one of the first k is relevant, else 0, (n_users,). Source: trec_eval `success`."""
    return np.asarray(_first(hits, k).any(axis=1), dtype=np.float64)


def mrr(hits: Hits, k: int) -> FloatArray:
    """1 / rank of the first hit in the first k, 0 without one, (n_users,); its mean is the MRR.

    Source: Voorhees 1999, "The TREC-8 question answering track report".
    """
    top = _first(hits, k)
    return np.asarray(top.any(axis=1) / (top.argmax(axis=1) + 1), dtype=np.float64)


def average_precision(hits: Hits, k: int) -> FloatArray:
    """Sum of the precisions at each hit of the first k, divided by n_relevant, (n_users,); its mean is MAP.

    The divisor is n_relevant and not min(k, n_relevant), as in trec_eval: a user with more than k relevant
    items cannot reach 1. Source: trec_eval `map_cut`, the AP@k of ir_measures.
    """
    top = _first(hits, k)
    precision_at = top.cumsum(axis=1) / np.arange(1, k + 1)
    return np.asarray((precision_at * top).sum(axis=1) / hits.n_relevant, dtype=np.float64)


def coverage(recommended: pl.DataFrame, n_items: int, k: int) -> float:
    """Share of the catalogue that stands in somebody's first k, in [0, 1].

    Args:
        recommended: Frame `user_id`, `item_id`, `rank`; lists are read as in `hit_matrix`.
        n_items: Size of the catalogue, at least 1.
        k: Length of the lists, at least 1.

    Raises:
        InvalidConfig: `k` is below 1, or `n_items` is below 1 or below the number of recommended items.
    """
    n_recommended = first_k(recommended, k)["item_id"].n_unique()
    if n_items < max(1, n_recommended):
        raise InvalidConfig(
            f"n_items is {n_items}, but {n_recommended} distinct items are recommended; "
            "pass the size of the whole catalogue"
        )
    return n_recommended / n_items


def bootstrap_interval(
    values: FloatArray, *, n_samples: int = 1000, level: float = 0.95, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.

    Args:
        values: (n_users,), one metric value a user, finite.
        n_samples: Resamples of n_users drawn with replacement, at least 1.
        level: Share of the resampled means that the interval holds, in (0, 1).
        seed: Same seed and values, same interval.

    Returns:
        The lower and the upper bound.

    Raises:
        InvalidConfig: `n_samples` or `level` is out of range.
        InvalidData: `values` is empty or holds a value that is not finite.
    """
    if n_samples < 1:
        raise InvalidConfig(f"n_samples is {n_samples}; it must be at least 1")
    if not 0 < level < 1:
        raise InvalidConfig(f"level is {level}; it must lie strictly between 0 and 1")
    _check_values(values)
    means = bootstrap_means(values[:, None], n_samples=n_samples, seed=seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(
    values: FloatArray, *, n_samples: int = 1000, seed: int, owners: npt.NDArray[np.int64] | None = None
) -> FloatArray:
    """Means of many columns over the same resampled users: every column, and every difference of columns, is paired.

    How often each user is drawn is one row of a matrix of counts, and all means are one matrix product, block by block.
    Source: Efron and Tibshirani 1993, section 6.2, the resampling vector.

    Args:
        values: (n, n_columns), one row a user; NaN where a column says nothing about a user, who is then not in its
            mean.
        n_samples: resamples, at least 1.
        seed: same seed, same draws, whatever the columns.
        owners: int64 (n,), which user each row is of, from 0, where users have several (rolling cuts): users are
            drawn with all their rows.

    Returns:
        (n_samples, n_columns); NaN where no row of a resample has a value.
    """
    known = ~np.isnan(values)
    everybody = bool(known.all()) and owners is None
    summed = values if everybody else np.where(known, values, 0.0)
    if owners is not None:
        summed, known = _by_owner(summed, owners), _by_owner(known.astype(np.float64), owners)
    n = len(summed)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, n))
    means = np.empty((n_samples, values.shape[1]))
    for start in range(0, n_samples, block):
        stop = min(start + block, n_samples)
        drawn = np.empty((stop - start, n))
        for row in drawn:
            row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
        totals = n if everybody else drawn @ known
        with np.errstate(invalid="ignore"):
            means[start:stop] = drawn @ summed / totals
    return means


def _by_owner(values: FloatArray, owners: npt.NDArray[np.int64]) -> FloatArray:
    """Sums of the rows of each owner, (n_owners, n_columns)."""
    order = np.argsort(owners, kind="stable")
    starts = np.flatnonzero(np.diff(owners[order], prepend=-1))
    return np.asarray(np.add.reduceat(values[order], starts, axis=0), dtype=np.float64)


def paired_bootstrap(
    a: FloatArray, b: FloatArray, *, n_samples: int = 1000, level: float = 0.95, seed: int
) -> tuple[float, float, float]:
    """Mean of a - b over users with its percentile bootstrap interval; users are resampled in pairs.

    Systems differ at `level` where the interval does not hold 0.
    Source: Sakai 2006, "Evaluating evaluation metrics based on the bootstrap".

    Args:
        a: (n_users,), the metric of one system.
        b: (n_users,), the same metric of another system for the same users in the same order.
        n_samples: As in `bootstrap_interval`.
        level: As in `bootstrap_interval`.
        seed: As in `bootstrap_interval`.

    Returns:
        Difference, lower bound, upper bound.

    Raises:
        InvalidConfig: `n_samples` or `level` is out of range.
        InvalidData: `a` and `b` differ in shape, are empty or hold a value that is not finite.
    """
    if a.shape != b.shape:
        raise InvalidData(
            table="a and b",
            rule=f"must have the same users, but have the shapes {a.shape} and {b.shape}",
            remedy="Measure both systems against the same truth",
        )
    difference = a - b
    low, high = bootstrap_interval(difference, n_samples=n_samples, level=level, seed=seed)
    return float(difference.mean()), low, high


def first_k(recommended: pl.DataFrame, k: int) -> pl.DataFrame:
    """`user_id`, `item_id`, `place` (from 0) of each user's first k distinct items, by user and place.

    Lists that hold a `place` already, as this function gives them, are only cut: whoever needs several metrics calls it
    once, with the largest k.

    Raises:
        InvalidConfig: `k` is below 1.
    """
    if k < 1:
        raise InvalidConfig(f"k is {k}; it must be at least 1")
    if "place" in recommended.columns:
        return recommended.filter(pl.col("place") < k)
    lists = recommended.select("user_id", "item_id", "rank")
    if lists.height > _ROWS and lists["user_id"].is_sorted():  # block by block, which bounds memory
        user, ends = lists["user_id"], [0]
        while ends[-1] < lists.height:
            last = min(ends[-1] + _ROWS, lists.height) - 1
            ends.append(int(user.search_sorted(user[last], side="right")))
        return pl.concat([_places(lists[start:end], k) for start, end in pairwise(ends)])
    return _places(lists, k)


def _slices(lists: pl.DataFrame) -> list[pl.DataFrame]:
    return [lists[start : start + 4 * _ROWS] for start in range(0, max(lists.height, 1), 4 * _ROWS)]


def _places(lists: pl.DataFrame, k: int) -> pl.DataFrame:
    if not _in_order(lists):
        lists = lists.group_by("user_id", "item_id").agg(pl.col("rank").min()).sort("user_id", "rank", "item_id")
    lengths = lists["user_id"].rle().struct.field("len").to_numpy()
    place = np.arange(lists.height) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = lists.select("user_id", "item_id").with_columns(place=pl.Series(place, dtype=pl.Int64))
    return kept.filter(pl.col("place") < k)


def _in_order(lists: pl.DataFrame) -> bool:
    """Whether rows lie by user and rank without ties, and no user has an item twice: then nothing must be sorted."""
    user, rank = lists["user_id"], lists["rank"]
    if lists.height < 2:
        return True
    same, later = user[1:] == user[:-1], user[1:] > user[:-1]
    if not bool((later | (same & (rank[1:] > rank[:-1]))).all()):
        return False
    # Two pairs may share a key by chance, about once in a million such tables; then the lists are sorted in vain.
    keys = lists["item_id"].hash().to_numpy() + user.rle_id().to_numpy().astype(np.uint64) * _ODD
    keys.sort()
    return bool((keys[1:] != keys[:-1]).all())


def _first(hits: Hits, k: int) -> npt.NDArray[np.bool_]:
    width = hits.hits.shape[1]
    if not 1 <= k <= width:
        raise InvalidConfig(f"k is {k}; it must lie between 1 and {width}, the k of the hit matrix")
    return hits.hits[:, :k]


def _n_hits(hits: Hits, k: int) -> npt.NDArray[np.int64]:
    return np.asarray(_first(hits, k).sum(axis=1), dtype=np.int64)


def _check_values(values: FloatArray) -> None:
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    if values.size == 0:
        raise InvalidData(table="values", rule="must not be empty", remedy="Pass one value for each user")
    if n_bad:
        raise InvalidData(
            table="values",
            rule="must be finite",
            count=n_bad,
            total=values.size,
            remedy="Leave those users out",
        )
