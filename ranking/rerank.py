"""From scored candidates to the final list: the best of each user, and rules that change that order after the ranker.

Owns how rules act on candidate rows. What a caller may ask for, and ids and column values, are not known here.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LEAST = 1e-3  # relevance of a user's worst candidate: at 0 no boost could lift it
SMOOTHING = 0.01  # of the list's category shares towards the history's; Steck (2018), section 3


def top_k(scored: pl.DataFrame, k: int) -> pl.DataFrame:
    """The best `k` rows of each user.

    Args:
        scored: `user_row`, `item_row`, `score` and further columns.
        k: list length, at least 1.

    Returns:
        Sorted by `user_row` and `rank` (Int32, from 1, best first); equal scores are ordered by `item_row`.
    """
    users, items, scores = (scored[name].to_numpy() for name in ("user_row", "item_row", "score"))
    places, ranks = best_places(users, items, scores, k)
    return scored[places].with_columns(rank=pl.Series(ranks))


def best_places(
    users: npt.NDArray[np.integer], items: npt.NDArray[np.integer], scores: npt.NDArray[np.floating], k: int
) -> tuple[Codes, npt.NDArray[np.int32]]:
    """Where the rows of `top_k` lie, int64 (n,), and their ranks, int32 (n,)."""
    order = np.lexsort((items, -scores, users))
    owners = users[order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    ranks = np.arange(1, len(order) + 1) - np.repeat(starts, np.diff(starts, append=len(order)))
    kept = ranks <= k
    return order[kept], ranks[kept].astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRules:
    """What a list shall be besides relevant, by item row.

    Attributes:
        vectors: float32 (n_items, dim), unit length, for `diversity`.
        comparable: bool (n_items,), items whose vectors mean something; the others are like no other.
        categories: int64 (n_items,), for `calibration`.
        diversity: in [0, 1), what likeness to an item of the list costs.
        calibration: in [0, 1), what category shares far from those of the history cost.
        caps: int64 codes (n_items,), -1 for items that are not capped, and the most items of one code in a list.
        boosts: float64 (n_items,), factors of the relevance.
        freshness: the same, falling with an item's age.
    """

    vectors: npt.NDArray[np.float32]
    comparable: npt.NDArray[np.bool_]
    categories: Codes
    diversity: float = 0.0
    calibration: float = 0.0
    caps: tuple[tuple[Codes, int], ...] = ()
    boosts: Floats | None = None
    freshness: Floats | None = None


def rerank(
    scored: pl.DataFrame, k: int, rules: ListRules, *, pins: pl.DataFrame, history: pl.DataFrame
) -> pl.DataFrame:
    """The `k` rows of each user that the rules choose, one place after the other.

    Each place goes to the candidate of most worth, given those above it and the pinned ones. Worth is relevance (the
    score scaled to [`LEAST`, 1] over the user's candidates, times boosts and freshness), less likeness to the nearest
    item of the list, plus what the item does for the category shares. Equal worth is ordered by score, then `item_row`.

    Args:
        scored: `user_row`, `item_row`, `score` and further columns; the pairs are distinct.
        k: list length, at least 1.
        rules: what is asked for.
        pins: `user_row`, `item_row`, `position` (from 1): who stands where. Caps count them and do not hold them back.
        history: `user_row`, `item_row`, one row an event, for calibration.

    Returns:
        As `top_k`, and `rules`: the rules behind an item's place, joined by ", ", or null. "boosted", "demoted" and
        "pinned" say so of the item; "freshness", "caps", "diversity" and "calibration" that another one would stand
        there without this rule. A pinned item that is no candidate has null in the columns of `scored`. In a list that
        ends before a pinned position the pinned item comes last.

    Source: diversity after Carbonell and Goldstein (1998), maximal marginal relevance; calibration after Steck (2018),
    greedy, with KL divergence.
    """
    frame = _prepared(scored, rules, pins, history)
    items, relevance, share, position = (
        frame[name].to_numpy() for name in ("item_row", "relevance", "share", "position")
    )
    lengths = frame["user_row"].rle().struct.field("len").to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    rows: list[int] = []
    ranks: list[int] = []
    words: list[str | None] = []
    for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
        part = slice(start, end)
        growing = _GrowingList(items[part], relevance[part], share[part], rules)
        pinned = {int(position[start + place]): int(place) for place in position[part].nonzero()[0]}
        chosen = _fill(growing, k, pinned)
        rows += [start + place for place, _ in chosen]
        ranks += range(1, len(chosen) + 1)
        words += [word or None for _, word in chosen]
    listed = frame.select(scored.columns)[rows]
    return listed.with_columns(rank=pl.Series(ranks, dtype=pl.Int32), rules=pl.Series(words, dtype=pl.String))


def _prepared(scored: pl.DataFrame, rules: ListRules, pins: pl.DataFrame, history: pl.DataFrame) -> pl.DataFrame:
    """Candidates and pinned items, best first, with `relevance`, `share` of the category and `position` (0: free)."""
    pair = ["user_row", "item_row"]
    pins = pins.select(pl.col(pair).cast(pl.Int32), pl.col("position").cast(pl.Int32))
    frame = scored.join(pins, on=pair, how="full", coalesce=True).with_columns(pl.col("position").fill_null(0))
    low, high = pl.col("score").min().over("user_row"), pl.col("score").max().over("user_row")
    scaled = pl.when(high > low).then(LEAST + (1.0 - LEAST) * (pl.col("score") - low) / (high - low)).otherwise(1.0)
    scaled = pl.when(pl.col("score").is_null()).then(0.0).otherwise(scaled)
    frame = frame.with_columns(relevance=scaled, category=pl.Series(rules.categories[frame["item_row"].to_numpy()]))
    events = history.select("user_row", category=pl.Series(rules.categories[history["item_row"].to_numpy()]))
    shares = events.group_by("user_row", "category").len()
    shares = shares.with_columns(share=pl.col("len") / pl.col("len").sum().over("user_row")).drop("len")
    frame = frame.join(shares, on=["user_row", "category"], how="left").with_columns(pl.col("share").fill_null(0.0))
    return frame.sort(["user_row", "score", "item_row"], descending=[False, True, False], nulls_last=True)


def _fill(growing: "_GrowingList", k: int, pinned: dict[int, int]) -> list[tuple[int, str]]:
    """Candidates by place, best first, each with the rules behind it; those pinned beyond `k` come last."""
    for candidate in pinned.values():
        growing.place(candidate)
    listed = []
    for position in range(1, k + 1):
        if position in pinned:
            listed.append((pinned[position], "pinned"))
        elif (best := growing.best()) >= 0:
            listed.append((best, ", ".join(growing.reasons(best))))
            growing.place(best)
    return listed + [(pinned[position], "pinned") for position in sorted(pinned) if position > k]


class _GrowingList:
    """One user's candidates, best first, and what the ones already placed mean for the others."""

    def __init__(self, items: Codes, relevance: Floats, share: Floats, rules: ListRules) -> None:
        n = len(items)
        self.rules, self.share = rules, share
        self.boosts = np.ones(n) if rules.boosts is None else rules.boosts[items]
        self.plain = relevance * self.boosts
        self.worth = self.plain if rules.freshness is None else self.plain * rules.freshness[items]
        self.vectors = rules.vectors[items] * rules.comparable[items, None] if rules.diversity else None
        self.categories = rules.categories[items]
        self.caps = [(codes[items], limit, np.zeros(n, dtype=np.int64)) for codes, limit in rules.caps]
        self.free, self.full = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        self.nearest, self.same, self.n_placed = np.zeros(n), np.zeros(n), 0
        active = {
            "freshness": rules.freshness is not None,
            "caps": bool(rules.caps),
            "diversity": rules.diversity > 0.0,
            "calibration": rules.calibration > 0.0 and bool(share.any()),
        }
        self.active = [name for name, is_on in active.items() if is_on]

    def place(self, candidate: int) -> None:
        """Put it into the list, wherever."""
        self.free[candidate] = False
        self.n_placed += 1
        self.same += self.categories == self.categories[candidate]
        if self.vectors is not None:
            np.maximum(self.nearest, self.vectors @ self.vectors[candidate], out=self.nearest)
        for codes, limit, count in self.caps:
            if codes[candidate] >= 0:
                count += codes == codes[candidate]
                self.full |= count >= limit

    def best(self, *, without: str = "") -> int:
        """The candidate for the next place, were it not for one of the rules; -1 where none is left."""
        value = self.plain if without == "freshness" else self.worth
        if "diversity" in self.active and without != "diversity":
            value = (1.0 - self.rules.diversity) * value - self.rules.diversity * self.nearest
        if "calibration" in self.active and without != "calibration":
            value = (1.0 - self.rules.calibration) * value + self.rules.calibration * self._closer()
        allowed = self.free if without == "caps" else self.free & ~self.full
        best = int(np.where(allowed, value, -np.inf).argmax())
        return best if allowed[best] else -1

    def reasons(self, chosen: int) -> list[str]:
        """The rules without which the next place would not be his, and what they did to the item itself."""
        factor = self.boosts[chosen]
        own = ["boosted"] if factor > 1.0 else ["demoted"] if factor < 1.0 else []
        return own + [name for name in self.active if self.best(without=name) != chosen]

    def _closer(self) -> Floats:
        """By how much each candidate lowers the divergence of the list's category shares from the history's.

        KL(p || q) is a sum over categories of -p log q and a constant, with q = (1 - a) n / (length + 1) + a p. An item
        of a category changes only that category's n, by one; all else is the same for every candidate.
        """
        expected = (1.0 - SMOOTHING) * self.same + SMOOTHING * self.share * (self.n_placed + 1)
        gain = np.zeros(len(expected))
        np.divide(1.0 - SMOOTHING, expected, out=gain, where=self.share > 0.0)
        return self.share * np.log1p(gain)
