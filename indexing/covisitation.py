"""Item-to-item neighbours from behaviour: which items are taken soon after which.

Owns counting and normalising. What a history's neighbours are worth to a user is decided in `indexing/sources.py`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from indexing.history import Histories
from indexing.sparse import ENTRIES_PER_BLOCK, keep_largest, rows_of

PAIRS_PER_BLOCK = 10_000_000  # bounds memory: about 0.3 GB of temporary arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class CovisitationConfig:
    """How pairs are counted.

    Attributes:
        window: pairs at most this many events apart count.
        max_pairs: the window shrinks until the histories have about this many pairs at most, which bounds time and
            memory (30 million: about 1 GB for a moment).
        distance_power: a pair d events apart counts d ** -distance_power; the lower, the further a history reaches.
        reverse_weight: worth of "taken before" relative to "taken after".
        n_neighbours: kept per item.
    """

    window: int = 1000
    max_pairs: int = 30_000_000
    distance_power: float = 0.5
    reverse_weight: float = 0.5
    n_neighbours: int = 200

    def __post_init__(self) -> None:
        if min(self.window, self.max_pairs, self.n_neighbours) < 1:
            raise ValueError(f"covisitation: window, max_pairs and n_neighbours must be at least 1, got {self}")
        if not self.distance_power >= 0.0:
            raise ValueError(f"covisitation: distance_power={self.distance_power} must be 0 or more")
        if not 0.0 <= self.reverse_weight <= 1.0:
            raise ValueError(f"covisitation: reverse_weight={self.reverse_weight} must lie in [0, 1]")


def covisitation(histories: Histories, n_items: int, config: CovisitationConfig) -> sp.csr_matrix:
    """Directional co-occurrence with distance decay.

    A pair (i, then j, d events later) adds w = d ** -distance_power to [i, j] and `reverse_weight` * w to [j, i]; each
    entry is divided by the square root of both items' counts. An item is no neighbour of itself.

    Args:
        histories: sequences in order of time.
        n_items: rows of the items table.
        config: window, reverse weight, neighbours kept.

    Returns:
        float32 CSR (n_items, n_items) with at most `n_neighbours` entries a row.
    """
    rows = histories.item_rows
    owner = np.repeat(np.arange(len(histories), dtype=np.int32), histories.lengths)
    total = sp.csr_matrix((n_items, n_items), dtype=np.float32)
    window = min(config.window, max(1, config.max_pairs // max(len(rows), 1)), int(histories.lengths.max(initial=1)))
    for distances in _blocks(window, len(rows)):
        total = total + _count(rows, owner, distances, config.distance_power, n_items)
    counts = np.bincount(rows, minlength=n_items).astype(np.float32)
    scale = 1.0 / np.sqrt(np.maximum(counts, 1.0)).astype(np.float32)
    return _nearest(total, scale, config)


def _blocks(window: int, n_events: int) -> list[npt.NDArray[np.int64]]:
    """Distances 1..window in groups of at most about `PAIRS_PER_BLOCK` pairs."""
    per_block = max(1, PAIRS_PER_BLOCK // max(n_events, 1))
    return np.split(np.arange(1, window + 1), range(per_block, window, per_block))


def _count(
    rows: npt.NDArray[np.int32],
    owner: npt.NDArray[np.int32],
    distances: npt.NDArray[np.int64],
    power: float,
    n_items: int,
) -> sp.csr_matrix:
    """Forward pairs at these distances, each worth distance ** -power."""
    first, second, worth = [], [], []
    for distance in distances:
        pair = (owner[:-distance] == owner[distance:]) & (rows[:-distance] != rows[distance:])
        first.append(rows[:-distance][pair])
        second.append(rows[distance:][pair])
        worth.append(np.full(len(first[-1]), float(distance) ** -power, dtype=np.float32))
    pairs = (np.concatenate(first), np.concatenate(second))
    return sp.coo_matrix((np.concatenate(worth), pairs), shape=(n_items, n_items)).tocsr()


def _nearest(total: sp.csr_matrix, scale: npt.NDArray[np.float32], config: CovisitationConfig) -> sp.csr_matrix:
    """Forward and reverse counts together, scaled, the largest of each row; in blocks of rows, which bounds memory."""
    reverse, n_items = total.T.tocsr(), total.shape[0]
    per_block = max(1, ENTRIES_PER_BLOCK * n_items // max(2 * total.nnz, 1))
    kept = [sp.csr_matrix((0, n_items), dtype=np.float32)]
    for start in range(0, n_items, per_block):
        rows = slice(start, start + per_block)
        directed = sp.csr_matrix(total[rows] + config.reverse_weight * reverse[rows])
        directed.data *= scale[start + rows_of(directed)]
        directed.data *= scale[directed.indices]
        kept.append(keep_largest(directed, config.n_neighbours))
    return sp.csr_matrix(sp.vstack(kept, format="csr"))
