"""How like a candidate is to what the user took lately: by vectors, and by what is taken together.

Owns the comparison only. Which vectors and which neighbours mean anything as of a moment is the caller's choice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from ranking.features import Columns

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
DETAILS = ("max", "mean", "last")
PRODUCTS_AT_ONCE = 200_000  # larger products are shared among threads, which takes far longer on a busy machine


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """Items as vectors.

    Attributes:
        vectors: float32 (n_vectors, dim), unit length.
        rows: int64 (n_items,), which vector an item has; -1 for an item whose vector means nothing.
    """

    vectors: Scores
    rows: Rows

    def known(self, items: Rows) -> npt.NDArray[np.bool_]:
        """Which items can be compared, bool (n,)."""
        return self.rows[items] >= 0

    def compare(self, items: Rows, taken: Rows) -> Scores:
        """Cosines, float32 (n_taken, n_items); NaN for an item that cannot be compared."""
        asked, recent = self.vectors[self.rows[items]], np.ascontiguousarray(self.vectors[self.rows[taken]].T)
        size = max(1, PRODUCTS_AT_ONCE // recent.size)
        parts = [asked[start : start + size] @ recent for start in range(0, len(asked), size)]
        cosines = np.concatenate(parts)
        cosines[self.rows[items] < 0] = np.nan
        return cosines.T


@dataclass(frozen=True, slots=True)
class NeighbourSpace:
    """Items by their neighbours.

    Attributes:
        neighbours: float32 CSR (n_items, n_items), columns distinct in each row.
    """

    neighbours: sp.csr_matrix

    def known(self, items: Rows) -> npt.NDArray[np.bool_]:
        """Every item can be compared."""
        return np.ones(len(items), dtype=np.bool_)

    def compare(self, items: Rows, taken: Rows) -> Scores:
        """Entries of each taken item's row, float32 (n_taken, n_items); 0 for an item that is no neighbour."""
        starts = self.neighbours.indptr[taken].astype(np.int64)
        lengths = self.neighbours.indptr[taken + 1] - starts
        ends = np.cumsum(lengths)
        entries = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
        asked, place = np.unique(items, return_inverse=True)
        columns = self.neighbours.indices[entries]
        nearest = np.minimum(np.searchsorted(asked, columns), len(asked) - 1)
        found = np.flatnonzero(asked[nearest] == columns)
        weights = np.zeros((len(taken), len(asked)), dtype=np.float32)
        owner = np.repeat(np.arange(len(taken)), lengths)
        weights[owner[found], nearest[found]] = self.neighbours.data[entries[found]]
        return weights[:, place]


Space = VectorSpace | NeighbourSpace


def add_similarity(pairs: Columns, history: pl.DataFrame, spaces: Mapping[str, Space], *, newest: int) -> Columns:
    """Compare the items of (user, item) pairs with what their users took last.

    Args:
        pairs: `user_row`, `item_row` and any further columns, which stay as they are.
        history: `user_row`, `item_row`, `seconds` of the pairs' users, in order of user and time, all before the
            moment that the pairs are described for.
        spaces: what to compare by, by name.
        newest: events of each user that are compared with, of those that the space can compare.

    Returns:
        The pairs in their order with float32 columns `similarity_<space>_max`, `_mean` and `_last` (the newest event);
        NaN for a user of whose history nothing can be compared, and for an item that cannot.
    """
    users, items = (pairs[name].astype(np.int64) for name in ("user_row", "item_row"))
    owners, taken = (history[name].to_numpy().astype(np.int64) for name in ("user_row", "item_row"))
    order = np.argsort(users, kind="stable")
    columns: Columns = {}
    for name, space in spaces.items():
        known = space.known(taken)
        values = np.full((len(DETAILS), len(users)), np.nan, dtype=np.float32)
        for chosen, recent in _by_user(users, order, owners[known], taken[known], newest):
            likeness = space.compare(items[chosen], recent)
            values[:, chosen] = likeness.max(axis=0), likeness.mean(axis=0), likeness[-1]
        columns |= {f"similarity_{name}_{detail}": row for detail, row in zip(DETAILS, values, strict=True)}
    return pairs | columns


def _by_user(users: Rows, order: Rows, owners: Rows, taken: Rows, newest: int) -> Iterator[tuple[Rows, Rows]]:
    """For each user with a history: the places of his pairs, and his newest items, newest last."""
    asked = users[order]
    first = np.flatnonzero(np.diff(asked, prepend=-1))
    last = np.append(first, len(asked))[1:]
    starts, stops = (np.searchsorted(owners, asked[first], side=side) for side in ("left", "right"))
    for begin, end, start, stop in zip(first, last, np.maximum(starts, stops - newest), stops, strict=True):
        if start < stop:
            yield order[begin:end], taken[start:stop]
