"""Exact search by matrix product and top-k on any torch device.

The oracle that the FAISS indexes are tested against, and what serves where FAISS is not installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indexing.index import FloatArray, Hits, Mask, RowArray, check_addition, grown, guarded_search, mark_deleted
from indexing.index_file import read_deleted, read_header, read_vectors, write_header
from indexing.layout import bytes_per_item

VECTORS = "vectors.npy"
QUERY_BLOCK = 64
ITEM_BLOCK = 262_144  # with QUERY_BLOCK it bounds one block of scores at 64 MiB


class ExactIndex:
    """All vectors on one device; every search looks at all of them, in torch's float32 matmul precision.

    Args:
        vectors: float32 (n, d), unit length, n >= 1.
        device: A torch device string.
        copy: Whether to hold a copy also on the CPU; without, the caller must not change the array. One that
            cannot be written is copied all the same, torch takes no other.
    """

    kind = "exact"
    engine = "torch"
    recall: float | None = None
    setting = ""

    def __init__(self, vectors: FloatArray, *, device: str, copy: bool = True) -> None:
        self.device = device
        self.size, self.dim = vectors.shape
        self.deleted: Mask = np.zeros(self.size, dtype=np.bool_)
        take = torch.tensor if copy or not vectors.flags.writeable else torch.as_tensor
        self._vectors = take(vectors, device=device)

    @property
    def bytes_per_item(self) -> int:
        """Memory of a vector."""
        return bytes_per_item(self.kind, self.size, self.dim)

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query; see ``VectorIndex.search``."""
        return guarded_search(self._search, self, queries, k, allowed)

    def add(self, vectors: FloatArray) -> None:
        """Append rows; see ``VectorIndex.add``. Copies all vectors once: add many at a time."""
        added = torch.tensor(check_addition(self, vectors), device=self.device)
        self._vectors = torch.cat([self._vectors, added])
        self.size, self.deleted = len(self._vectors), grown(self.deleted, len(added))

    def delete(self, rows: RowArray) -> None:
        """Hide rows for good; see ``VectorIndex.delete``."""
        mark_deleted(self.deleted, rows)

    def save(self, folder: Path) -> None:
        """Write ``vectors.npy`` and ``index.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / VECTORS, self._vectors.cpu().numpy(), allow_pickle=False)
        write_header(folder, self)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> ExactIndex:
        """Read what ``save`` wrote.

        Raises:
            ValueError: A file is missing, unreadable, or contradicts the header.
        """
        header = read_header(folder)
        index = cls(read_vectors(folder, VECTORS, header), device=device, copy=False)
        index.deleted = read_deleted(folder, header)
        return index

    @torch.inference_mode()
    def _search(self, queries: FloatArray, k: int, allowed: Mask | None) -> Hits:
        mask = None if allowed is None else torch.tensor(allowed, device=self.device)
        starts = range(0, len(queries), QUERY_BLOCK)
        blocks = [self._search_block(queries[start : start + QUERY_BLOCK], k, mask) for start in starts]
        scores = torch.cat([block_scores for block_scores, _ in blocks])
        rows = torch.cat([block_rows for _, block_rows in blocks])
        rows[scores == -torch.inf] = -1
        return rows.numpy(), scores.numpy()

    def _search_block(self, block: FloatArray, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        queries = torch.tensor(block, device=self.device)  # (q, d)
        best_scores = torch.empty((len(queries), 0), device=self.device)
        best_rows = torch.empty((len(queries), 0), dtype=torch.int64, device=self.device)
        for start in range(0, self.size, ITEM_BLOCK):
            items = slice(start, start + ITEM_BLOCK)
            scores = queries @ self._vectors[items].T  # (q, block)
            if mask is not None:
                scores.masked_fill_(~mask[items], -torch.inf)
            scores, columns = _top_k(scores, k)
            # Earlier blocks hold lower rows and stand first: a stable sort keeps equal scores in row order.
            scores, order = _descending(torch.cat([best_scores, scores], dim=1))
            rows = torch.cat([best_rows, columns + start], dim=1).gather(1, order)
            best_scores, best_rows = scores[:, :k], rows[:, :k]
        return best_scores.cpu(), best_rows.cpu()


def _descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Score descending, equal scores by column ascending."""
    values, columns = torch.sort(scores, dim=1, descending=True, stable=True)
    return values, columns


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of ``_descending``; sorts all columns only where equal scores straddle the k-th place."""
    if k >= scores.shape[1]:
        return _descending(scores)
    ahead, columns = scores.topk(k + 1, dim=1)
    columns = columns[:, :k].sort(dim=1).values
    values, order = _descending(scores.gather(1, columns))
    columns = columns.gather(1, order)
    tied = (ahead[:, k - 1] == ahead[:, k]) & (ahead[:, k] > -torch.inf)
    if tied.any():
        tied_values, tied_columns = _descending(scores[tied])
        values[tied], columns[tied] = tied_values[:, :k], tied_columns[:, :k]
    return values, columns
