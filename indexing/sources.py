"""Where candidates come from: one small class a source, all with the same two questions.

A source is opened for a block of users; the opened source holds its best items for each of them and scores any
(user, item) pairs. Merging the lists is `indexing/retriever.py`.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from indexing.history import Histories, HistoryEncoder
from indexing.index import VectorIndex
from indexing.neighbour_cache import NeighbourCache
from indexing.sparse import are_among, distinct, entries_at, keep_largest, largest, place_in_runs, positions_of

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

Made = TypeVar("Made")

MOST_COMPANY = 500  # items between a history and what is like them: a third of the time where histories are rich
PAIRS_PER_BLOCK = 4096  # so that the vectors of the pairs scored at once stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Block:
    """Some users and what may be shown to them.

    Attributes:
        histories: the block's users.
        blocked: bool (n_items,), items that nobody may be shown.
        hide_seen: whether a user's own items are hidden from him.
        seen: keys (user * n_items + item) of each user's own items, distinct and ascending, int64; none where they
            may be shown.
        made: what sources made for these users, by the source's identity.
    """

    histories: Histories
    blocked: Mask
    hide_seen: bool
    seen: Rows = field(init=False)
    made: dict[int, tuple[object, Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        histories = self.histories if self.hide_seen else self.histories.slice(0, 0)
        owner = np.repeat(np.arange(len(histories)), histories.lengths)
        object.__setattr__(self, "seen", distinct(self.keys(owner, histories.item_rows.astype(np.int64))))

    def only(self, items: Mask) -> Self:
        """The same users, shown nothing but these items, bool (n_items,); what was made for them is there already."""
        narrowed = copy(self)
        object.__setattr__(narrowed, "blocked", self.blocked | ~items)
        return narrowed

    def once(self, source: object, make: Callable[[], Made]) -> Made:
        """What a source makes of the histories alone: made when it is first opened for these users."""
        if id(source) not in self.made:
            self.made[id(source)] = (source, make())  # kept alive, so that no other gets its identity
        made: Made = self.made[id(source)][1]
        return made

    def __len__(self) -> int:
        """Number of users."""
        return len(self.histories)

    @property
    def n_items(self) -> int:
        """Rows of the items table."""
        return len(self.blocked)

    def keys(self, users: Rows, items: Rows) -> Rows:
        """One number for each (user, item) pair, in order of user, then item."""
        return users * self.n_items + items

    def n_seen(self) -> Rows:
        """Distinct items hidden from each user as his own, int64 (n_users,)."""
        return np.bincount(self.seen // self.n_items, minlength=len(self))

    def shown(self, users: Rows, items: Rows) -> Mask:
        """Which pairs may be shown, bool (n_pairs,)."""
        return ~self.blocked[items] & (positions_of(self.seen, self.keys(users, items)) < 0)


@dataclass(frozen=True, slots=True)
class Opened:
    """A source with its work for one block done.

    Attributes:
        users: int64 (n,), ascending.
        items: int64 (n,), what the source proposes to each user, best first; nothing hidden, nothing twice.
        score: from users, ascending, and items of pairs, int64 (n_pairs,) each, to the source's scores, float32
            (n_pairs,); zero where it knows nothing.
    """

    users: Rows
    items: Rows
    score: Callable[[Rows, Rows], Scores]


class Source(Protocol):
    """Anything that proposes items."""

    def open(self, block: Block, n: int) -> Opened:
        """Do the work for the block's users, with at most `n` items each."""


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
    searchable: Mask

    def open(self, block: Block, n: int) -> Opened:
        """Encode the users and search the index, deeper for those of whom many items are hidden."""
        readable = block.histories.keep(self.searchable)
        vectors = block.once(self, lambda: self.encoder.encode(readable, self.item_vectors))
        users, items = self._nearest(block, vectors, np.where(readable.lengths > 0, self._depths(block, n), 0))
        shown = block.shown(users, items)
        users, items = users[shown], items[shown]
        first = place_in_runs(users) < n
        return Opened(users[first], items[first], lambda u, i: self._cosines(vectors, u, i))

    def _nearest(self, block: Block, vectors: Scores, depths: Rows) -> tuple[Rows, Rows]:
        """Users and items that the index finds, by user, then best first; a user's own items are still among them."""
        allowed = self.searchable & ~block.blocked
        users, items = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for depth in np.unique(depths[depths > 0]) if allowed.any() else []:
            chosen = np.flatnonzero(depths == depth)
            rows, _ = self.index.search(vectors[chosen], int(depth), allowed=None if allowed.all() else allowed)
            places, columns = np.nonzero(rows >= 0)
            users.append(chosen[places])
            items.append(rows[places, columns])
        owner = np.concatenate(users)
        order = np.argsort(owner, kind="stable")
        return owner[order], np.concatenate(items)[order]

    def _depths(self, block: Block, n: int) -> Rows:
        """How deep to search so that `n` items are left without the seen ones: `n` times a power of two, int64."""
        doublings = np.ceil(np.log2(1.0 + block.n_seen() / n))
        return np.minimum(n * 2.0**doublings, self.index.size).astype(np.int64)

    def _cosines(self, vectors: Scores, users: Rows, items: Rows) -> Scores:
        """Cosine of user and item; zero for a user without history and for an item without text."""
        cosines = np.zeros(len(users), dtype=np.float32)
        for start in range(0, len(users), PAIRS_PER_BLOCK):
            part = slice(start, start + PAIRS_PER_BLOCK)
            cosines[part] = np.einsum("ij,ij->i", vectors[users[part]], self.item_vectors[items[part]])
        return np.where(self.searchable[items], cosines, np.float32(0.0))


@dataclass(frozen=True, slots=True)
class NeighbourSource:
    """Neighbours of the items in the history, the newest weighing most.

    Attributes:
        neighbours: float32 CSR (n_keys, n_items); row `keys[i]` holds the neighbours of item `i`.
        keys: int64 (n_items,), which row of `neighbours` belongs to an item; -1 for an item without neighbours.
        max_length: newest events read per user.
        power: the event at place r from the end (r = 0, 1, ...) weighs (1 + r) ** -power; 0 counts all alike.
    """

    neighbours: sp.csr_matrix
    keys: Rows
    max_length: int
    power: float

    def open(self, block: Block, n: int) -> Opened:
        """List the best of the summed neighbours."""
        return _opened(block.once(self, lambda: self.summed(block.histories)), block, n)

    def summed(self, histories: Histories) -> sp.csr_matrix:
        """The neighbour rows of each user's history, weighted and summed, CSR (n_users, n_items)."""
        return self._weights(histories) @ self.neighbours

    def _weights(self, histories: Histories) -> sp.csr_matrix:
        """What each key is worth to each user, CSR (n_users, n_keys); a key is there as often as it was taken."""
        place = _places(histories)
        key = self.keys[histories.item_rows]
        read = (place < self.max_length) & (key >= 0)
        worth = ((1.0 + place[read]) ** -self.power).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(read)])[histories.offsets]
        return sp.csr_matrix((worth, key[read], offsets), shape=(len(histories), self.neighbours.shape[0]))


@dataclass(frozen=True, slots=True)
class LookalikeSource:
    """Items like those that are taken soon after the newest items: also such as nobody took yet.

    Attributes:
        company: what is taken soon after what.
        text_rows: int64 (n_items,), the text of each item.
        alike: float32 CSR (n_texts, n_items), what `indexing.lookalikes.lookalikes` returned.
    """

    company: NeighbourSource
    text_rows: Rows
    alike: sp.csr_matrix

    def open(self, block: Block, n: int) -> Opened:
        """List the best of what is like the company of the history."""
        return _opened(block.once(self, lambda: self._summed(block.histories)), block, n)

    def _summed(self, histories: Histories) -> sp.csr_matrix:
        """From the history to its company, from there to items with like texts, CSR (n_users, n_items)."""
        near = keep_largest(self.company.summed(histories), MOST_COMPANY)
        shape = (len(histories), self.alike.shape[0])
        texts = sp.csr_matrix((near.data, self.text_rows[near.indices], near.indptr), shape=shape)
        return texts @ self.alike


def _opened(scores: sp.csr_matrix, block: Block, n: int) -> Opened:
    """The `n` best of each row, and a look-up of every entry."""
    hidden = are_among(scores, *np.divmod(block.seen, max(block.n_items, 1)))
    best = largest(scores, n, ~block.blocked[scores.indices] & (scores.data > 0.0) & ~hidden)
    users = np.searchsorted(scores.indptr, best, side="right") - 1
    items = scores.indices[best].astype(np.int64)
    return Opened(users, items, lambda u, i: entries_at(scores, u, i))


def _places(histories: Histories) -> Rows:
    """How many events of the same user are newer, int64 (n_events,)."""
    return np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.item_rows))


@dataclass(frozen=True, slots=True)
class SimilarSource:
    """Items whose vectors lie nearest to those of the newest items, for interests that one user vector blurs.

    Attributes:
        nearest: of each newest item.
        searchable: as for `VectorSource`.
        max_length: as for `NeighbourSource`.
        power: as for `NeighbourSource`.
    """

    nearest: NeighbourCache
    searchable: Mask
    max_length: int
    power: float

    def open(self, block: Block, n: int) -> Opened:
        """Search the neighbours of the block's newest items, and sum them."""
        newest = block.histories.item_rows[_places(block.histories) < self.max_length]
        asked = np.unique(newest[self.searchable[newest]])
        keys = np.full(block.n_items, -1, dtype=np.int64)
        keys[asked] = np.arange(len(asked))
        return NeighbourSource(self._neighbours(asked, block), keys, self.max_length, self.power).open(block, n)

    def _neighbours(self, asked: npt.NDArray[np.int32], block: Block) -> sp.csr_matrix:
        """Cosines above zero of each asked item to its nearest, without itself, CSR (n_asked, n_items)."""
        shape = (len(asked), block.n_items)
        allowed = self.searchable & ~block.blocked
        if not (len(asked) and allowed.any()):
            return sp.csr_matrix(shape, dtype=np.float32)
        rows, cosines = self.nearest.search(asked, None if allowed.all() else allowed)
        places, columns = np.nonzero((rows >= 0) & (cosines > 0.0) & (rows != asked[:, None]))
        return sp.csr_matrix((cosines[places, columns], (places, rows[places, columns])), shape=shape)


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
    def of(cls, scores: Scores) -> Self:
        """From one score an item."""
        return cls(scores, np.lexsort((np.arange(len(scores)), -scores)))

    def open(self, block: Block, n: int) -> Opened:
        """The first `n` of the order that each user may be shown."""
        users, items = first_shown(self.order, block, n)
        return Opened(users, items, lambda _, i: self.scores[i])


def first_shown(order: Rows, block: Block, n: int) -> tuple[Rows, Rows]:
    """Users and items: for each user the first `n` rows of `order` that may be shown to him, in that order."""
    head = _first_allowed(order, block.blocked, n + int(block.n_seen().max(initial=0)))
    by_item = np.argsort(head)
    owner, seen = np.divmod(block.seen, block.n_items)
    found = positions_of(head[by_item], seen)
    within = found >= 0
    shown = np.ones((len(block), len(head)), dtype=np.bool_)
    shown[owner[within], by_item[found[within]]] = False
    shown &= np.cumsum(shown, axis=1) <= n
    users, places = np.nonzero(shown)
    return users, head[places]


def _first_allowed(order: Rows, blocked: Mask, n: int) -> Rows:
    """The first `n` rows of `order` that are not blocked; looks no further than it must."""
    size = n
    while True:
        head = order[:size]
        head = head[~blocked[head]]
        if len(head) >= n or size >= len(order):
            return head[:n]
        size *= 4
