"""Where candidates come from: one small class a source, all with the same two questions.

A source is opened for a block of users; the opened source then lists its best items for one user and scores any
(user, item) pairs. Merging the lists is `indexing/retriever.py`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex
from indexing.sparse import best_columns, entries

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Some users and what may be shown to them.

    Attributes:
        histories: the block's users.
        blocked: bool (n_items,), items that nobody may be shown.
        hide_seen: whether a user's own items are hidden from him.
    """

    histories: Histories
    blocked: npt.NDArray[np.bool_]
    hide_seen: bool

    def hidden(self, user: int) -> npt.NDArray[np.bool_]:
        """Items hidden from this user, bool (n_items,)."""
        if not self.hide_seen:
            return self.blocked
        hidden = self.blocked.copy()
        hidden[self.histories.of(user)] = True
        return hidden


class Opened(Protocol):
    """A source with its work for one block done."""

    def top(self, user: int, hidden: npt.NDArray[np.bool_], n: int) -> Rows:
        """At most `n` item rows, best first, none of them hidden."""

    def score(self, users: Rows, items: Rows) -> Scores:
        """Scores of (user, item) pairs, float32 (n_pairs,); zero where the source knows nothing."""


class Source(Protocol):
    """Anything that proposes items."""

    def open(self, block: Block, n: int) -> Opened:
        """Do the work that the block's users share, ready to be asked for `n` items each."""


@dataclass(frozen=True, slots=True)
class VectorSource:
    """Nearest items to the user's vector.

    Attributes:
        encoder: the user tower.
        item_vectors: float32 (n_items, dim), unit length.
        index: over the same vectors.
        searchable: bool (n_items,), false for items without text, whose vectors mean nothing.
    """

    encoder: HistoryEncoder
    item_vectors: Scores
    index: VectorIndex
    searchable: npt.NDArray[np.bool_]

    def open(self, block: Block, n: int) -> "OpenedVectors":
        """Encode the users and search the index, deeper for those of whom many items are hidden."""
        readable = block.histories.keep(self.searchable)
        users = self.encoder.encode(readable, self.item_vectors)
        allowed = self.searchable & ~block.blocked
        found = [np.zeros(0, dtype=np.int64)] * len(users)
        depths = np.where(readable.lengths > 0, self._depths(block, n), 0)
        for depth in np.unique(depths[depths > 0]) if allowed.any() else []:
            chosen = np.flatnonzero(depths == depth)
            rows, _ = self.index.search(users[chosen], int(depth), allowed=None if allowed.all() else allowed)
            for user, row in zip(chosen, rows, strict=True):
                found[user] = row[row >= 0]
        return OpenedVectors(users, self.item_vectors, self.searchable, found)

    def _depths(self, block: Block, n: int) -> Rows:
        """How deep to search so that `n` items are left without the seen ones: `n` times a power of two, int64."""
        if not block.hide_seen:
            return np.full(len(block.histories), min(n, self.index.size))
        seen = [len(np.unique(block.histories.of(user))) for user in range(len(block.histories))]
        doublings = np.ceil(np.log2(1.0 + np.array(seen) / n))
        return np.minimum(n * 2.0**doublings, self.index.size).astype(np.int64)


@dataclass(frozen=True, slots=True)
class OpenedVectors:
    """User vectors of a block and the index's answers, one array of item rows a user."""

    users: Scores
    item_vectors: Scores
    searchable: npt.NDArray[np.bool_]
    found: list[Rows]

    def top(self, user: int, hidden: npt.NDArray[np.bool_], n: int) -> Rows:
        """See `Opened`."""
        rows = self.found[user]
        return np.asarray(rows[~hidden[rows]][:n])

    def score(self, users: Rows, items: Rows) -> Scores:
        """Cosine of user and item; zero for a user without history and for an item without text."""
        cosine = np.einsum("ij,ij->i", self.users[users], self.item_vectors[items])
        return np.where(self.searchable[items], cosine, np.float32(0.0))


@dataclass(frozen=True, slots=True)
class NeighbourSource:
    """Neighbours of the items in the history, the newest weighing most.

    Attributes:
        neighbours: float32 CSR (n_keys, n_items); row `keys[i]` holds the neighbours of item `i`.
        keys: int64 (n_items,), which row of `neighbours` belongs to an item.
        max_length: newest events read per user.
        power: the event at place r from the end (r = 0, 1, ...) weighs (1 + r) ** -power; 0 counts all alike.
    """

    neighbours: sp.csr_matrix
    keys: Rows
    max_length: int
    power: float

    def open(self, block: Block, n: int) -> "OpenedNeighbours":
        """Sum the neighbour rows of each user's history."""
        scores = sp.csr_matrix(self._weights(block.histories) @ self.neighbours)
        scores.sort_indices()
        return OpenedNeighbours(scores)

    def _weights(self, histories: Histories) -> sp.csr_matrix:
        """What each key is worth to each user, CSR (n_users, n_keys)."""
        place = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.item_rows))
        user = np.repeat(np.arange(len(histories)), histories.lengths)
        read = place < self.max_length
        worth = (1.0 + place[read]) ** -self.power
        cells = (user[read], self.keys[histories.item_rows[read]])
        shape = (len(histories), self.neighbours.shape[0])
        return sp.csr_matrix((worth.astype(np.float32), cells), shape=shape)


@dataclass(frozen=True, slots=True)
class OpenedNeighbours:
    """Summed neighbour scores, CSR (n_users, n_items) with sorted columns."""

    scores: sp.csr_matrix

    def top(self, user: int, hidden: npt.NDArray[np.bool_], n: int) -> Rows:
        """See `Opened`."""
        start, stop = self.scores.indptr[user], self.scores.indptr[user + 1]
        columns, scores = self.scores.indices[start:stop], self.scores.data[start:stop]
        shown = ~hidden[columns]
        columns, scores = columns[shown], scores[shown]
        return np.asarray(columns[best_columns(columns, scores, n)], dtype=np.int64)

    def score(self, users: Rows, items: Rows) -> Scores:
        """Summed neighbour score."""
        return entries(self.scores, users, items)


@dataclass(frozen=True, slots=True)
class PopularitySource:
    """The same items for everybody.

    Attributes:
        scores: float32 (n_items,), zero for items that nobody took.
        order: int64 (n_items,), item rows, best first; those that nobody took come last, for lists with nothing better.
    """

    scores: Scores
    order: Rows

    @classmethod
    def of(cls, scores: Scores) -> "PopularitySource":
        """From one score an item."""
        order = np.lexsort((np.arange(len(scores)), -scores))
        return cls(scores, order)

    def open(self, block: Block, n: int) -> "PopularitySource":
        """Nothing depends on the user."""
        return self

    def top(self, user: int, hidden: npt.NDArray[np.bool_], n: int) -> Rows:
        """See `Opened`."""
        return first_shown(self.order, hidden, n)

    def score(self, users: Rows, items: Rows) -> Scores:
        """The item's score."""
        return self.scores[items]


def first_shown(order: Rows, hidden: npt.NDArray[np.bool_], n: int) -> Rows:
    """The first `n` rows of `order` that are not hidden, looking ever further while too few are."""
    length = 2 * n
    while True:
        head = order[:length]
        shown = head[~hidden[head]]
        if len(shown) >= n or length >= len(order):
            return shown[:n]
        length *= 4
