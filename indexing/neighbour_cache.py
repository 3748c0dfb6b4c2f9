"""Nearest items of items, of which those that were asked for lately are remembered.

Owns what is remembered and for how long. A search of one item reads every vector of the catalogue, and the newest items
of many people are the same.
"""

from threading import Lock

import numpy as np
import numpy.typing as npt

from indexing.index import FloatArray, Hits, Mask, RowArray, VectorIndex

MOST_CELLS = 2_000_000  # that are remembered, 8 bytes each: 20,000 items where 100 neighbours are asked for


class NeighbourCache:
    """The nearest of each item among those that may be shown. Safe for several threads.

    Args:
        item_vectors: float32 (n_items, dim), unit length.
        index: over the same vectors; it must stay as it is.
        depth: neighbours of an item, itself among them.
    """

    def __init__(self, item_vectors: FloatArray, index: VectorIndex, depth: int) -> None:
        self._vectors, self._index, self._depth = item_vectors, index, min(depth, index.size)
        size = min(max(1, MOST_CELLS // max(1, self._depth)), len(item_vectors))
        self._rows = np.empty((size, self._depth), dtype=np.int32)
        self._cosines = np.empty((size, self._depth), dtype=np.float32)
        self._places = np.full(len(item_vectors), -1, dtype=np.int32)  # where an item's neighbours lie
        self._owners = np.full(size, -1, dtype=np.int64)  # whose they are
        self._allowed: Mask | None = None
        self._lock, self._next = Lock(), 0

    def search(self, asked: npt.NDArray[np.integer], allowed: Mask | None) -> Hits:
        """The nearest allowed items of each asked one; see `VectorIndex.search`.

        Args:
            asked: distinct item rows, (n,).
            allowed: bool (n_items,); None for all. What was found with another mask is forgotten.

        Returns:
            Item rows, int64, and cosines, float32, both (n, depth), -1 and minus infinity where there are fewer. A
            cosine does not depend on what was asked beside it.
        """
        with self._lock:
            if not _same(allowed, self._allowed):
                self._forget(allowed)
            places = self._places[asked]
            rows, cosines = self._rows[places].astype(np.int64), self._cosines[places]
        new = places < 0
        if new.any():
            rows[new], cosines[new] = found = self._found(asked[new], allowed)
            with self._lock:
                if _same(allowed, self._allowed):
                    self._keep(asked[new], *found)
        return rows, cosines

    def _found(self, asked: npt.NDArray[np.integer], allowed: Mask | None) -> Hits:
        """What the index finds, with cosines computed pair by pair: its own differ in their last bits by batch."""
        rows, _ = self._index.search(self._vectors[asked], self._depth, allowed=allowed)
        cosines = np.empty(rows.shape, dtype=np.float32)
        for place, row in enumerate(asked):
            cosines[place] = np.einsum("kd,d->k", self._vectors[rows[place]], self._vectors[row])
        cosines[rows < 0] = -np.inf
        return rows, cosines

    def _keep(self, asked: npt.NDArray[np.integer], rows: RowArray, cosines: FloatArray) -> None:
        """Remember these, as many as there is room for, in the places of the oldest."""
        asked = asked[: len(self._rows)]
        places = (self._next + np.arange(len(asked))) % len(self._rows)
        left = self._owners[places]
        self._places[left[left >= 0]] = -1
        self._rows[places], self._cosines[places] = rows[: len(asked)], cosines[: len(asked)]
        self._owners[places], self._places[asked] = asked, places
        self._next = int(places[-1] + 1) % len(self._rows)

    def _forget(self, allowed: Mask | None) -> None:
        """Start anew, for this mask."""
        self._allowed = None if allowed is None else allowed.copy()
        self._places[self._owners[self._owners >= 0]] = -1
        self._owners[:] = -1
        self._next = 0


def _same(one: Mask | None, other: Mask | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
