"""A search in two steps: an index over less finds more rows than are wanted, the full vectors decide among them.

Serves codes (``ivf-sq8``, ``ivf-pq``) and short vectors (``search_dim``, made by ``shortening.py``). Does not own the
first step, and reads the caller's vectors rather than copying them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex
from indexing.faiss_master import inner_products
from indexing.index import (
    FloatArray,
    Hits,
    Mask,
    RowArray,
    check_addition,
    guarded_search,
    load_index,
)
from indexing.index_file import read_array, read_header, read_vectors, write_header
from indexing.shortening import Shortening

COARSE = "coarse"
VECTORS = "vectors.npy"
SHORTENING = "shortening.npy"  # both projections, of queries first
LEAST_DEPTH = 100  # rows wanted for which ``overfetch`` is tuned; the best one of a few needs no fewer candidates


class RescoredIndex:
    """Searches ``coarse`` for ``overfetch`` times the rows wanted (100 or more) and orders them by exact scores.

    Args:
        coarse: Over the codes, or over short vectors, of the same rows.
        vectors: float32 (n, d) unit vectors, contiguous; not copied and not to be changed.
        shortening: What made the vectors of ``coarse`` short; None where they are as long as all.
        overfetch: Rows rescored for one row wanted.
        recall: As measured before.
    """

    def __init__(
        self,
        coarse: ExactIndex | FaissIndex,
        vectors: FloatArray,
        *,
        shortening: Shortening | None = None,
        overfetch: int = 1,
        recall: float | None = None,
    ) -> None:
        self.kind, self.engine, self.device = coarse.kind, coarse.engine, coarse.device
        self.size, self.dim = vectors.shape
        self.deleted, self.recall = coarse.deleted, recall
        self.coarse, self.overfetch = coarse, overfetch
        self._vectors, self._shortening = vectors, shortening

    @property
    def bytes_per_item(self) -> int:
        """Memory of the coarse index."""
        return self.coarse.bytes_per_item

    @property
    def setting(self) -> str:
        """Effort of the coarse index, dimensions searched, and rows rescored."""
        short = f"{self.coarse.dim} of {self.dim} dimensions" if self.coarse.dim < self.dim else ""
        return ", ".join(filter(None, [self.coarse.setting, short, f"{self.overfetch} x rescored"]))

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query; see ``VectorIndex.search``."""
        return guarded_search(self._search, self, queries, k, allowed)

    def add(self, vectors: FloatArray) -> None:
        """Append rows; see ``VectorIndex.add``. Copies all vectors once: add many at a time."""
        vectors = check_addition(self, vectors)
        self.coarse.add(vectors if self._shortening is None else self._shortening.of_vectors(vectors))
        self._vectors = np.concatenate([self._vectors, vectors])
        self.size, self.deleted = len(self._vectors), self.coarse.deleted

    def delete(self, rows: RowArray) -> None:
        """Hide rows for good; see ``VectorIndex.delete``."""
        self.coarse.delete(rows)

    def save(self, folder: Path) -> None:
        """Write ``coarse/``, ``vectors.npy``, ``index.json`` and, where vectors are short, ``shortening.npy``."""
        self.coarse.save(folder / COARSE)
        if self._shortening is not None:
            both = np.stack([self._shortening.queries, self._shortening.vectors])
            np.save(folder / SHORTENING, both, allow_pickle=False)
        # The file may be the one that these vectors are mapped from: it is replaced, not written into.
        partial = folder / f"{VECTORS}.partial"
        with partial.open("wb") as file:
            np.save(file, self._vectors, allow_pickle=False)
        partial.replace(folder / VECTORS)
        write_header(folder, self, overfetch=self.overfetch)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> RescoredIndex:
        """Read what ``save`` wrote; the vectors stay on disk and are mapped into memory.

        Raises:
            ValueError: A file is missing, unreadable, or contradicts a header.
            RuntimeError: FAISS is needed and cannot be imported.
        """
        header = read_header(folder)
        vectors = read_vectors(folder, VECTORS, header, mapped=True)
        coarse = load_index(folder / COARSE, device=device)
        overfetch = header["overfetch"]
        fits = not isinstance(coarse, RescoredIndex) and coarse.size == len(vectors) and coarse.dim <= vectors.shape[1]
        if not fits or not isinstance(overfetch, int) or overfetch < 1 or coarse.kind != header["kind"]:
            raise ValueError(f"{folder}: {COARSE}/ does not belong to {VECTORS}; build the index again")
        shortening = read_shortening(folder, vectors.shape[1], coarse.dim)
        return cls(coarse, vectors, shortening=shortening, overfetch=overfetch, recall=header["recall"])  # type: ignore[arg-type]

    def _search(self, queries: FloatArray, k: int, allowed: Mask | None) -> Hits:
        depth = min(self.size, max(k, LEAST_DEPTH) * self.overfetch)
        short = queries if self._shortening is None else self._shortening.of_queries(queries)
        rows, _ = self.coarse.search(short, depth, allowed=allowed)
        scores = self._scores(queries, rows)
        order = np.lexsort((rows, -scores))[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _scores(self, queries: FloatArray, rows: RowArray) -> FloatArray:
        """Inner products of each query with its rows, float32 (q, depth); -inf for row -1."""
        if self.engine == "faiss":
            scores = inner_products(queries, self._vectors, rows)
        else:
            pairs = zip(queries, rows, strict=True)
            scores = np.array([self._vectors[found] @ query for query, found in pairs], dtype=np.float32)
        scores[rows < 0] = -np.inf
        return scores


def read_shortening(folder: Path, dim: int, short_dim: int) -> Shortening | None:
    """What makes vectors of ``dim`` as short as the coarse index has them; None where they are equally long.

    Raises:
        ValueError: The file is missing, unreadable, or of other vectors.
    """
    if short_dim == dim:
        return None
    both = read_array(folder / SHORTENING)
    if both.dtype != np.float32 or both.shape != (2, dim, short_dim - 1) or not np.isfinite(both).all():
        raise ValueError(
            f"{folder / SHORTENING} must be finite float32 of shape (2, {dim}, {short_dim - 1}); build the index again"
        )
    return Shortening(*both)
