"""Search with FAISS, on the CPU or CUDA devices.

Owns the search: how hard to look for a depth and a mask, ties, and what goes to the GPU. Making and reading the
objects of FAISS is ``faiss_master.py``'s.
"""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from indexing import faiss_master
from indexing.faiss_master import both_builds_installed, faiss_build, require_faiss
from indexing.index import (
    FloatArray,
    Hits,
    Mask,
    MultiGpu,
    RowArray,
    check_addition,
    grown,
    guarded_search,
    mark_deleted,
)
from indexing.index_file import check_header, read_deleted, read_header, write_header
from indexing.layout import CODED, bytes_per_item

__all__ = ["FaissIndex", "both_builds_installed", "faiss_build"]

INDEX_FILE = "index.faiss"
GPU_DEPTH = 2048  # FAISS's k-selection on the GPU takes neither more results nor more lists
WIDE_MASK = 0.25  # from this share of allowed rows, a scan of all rows with BLAS beats one of the allowed without
HITS_AT_ONCE = 1 << 24  # 12 bytes each: bounds what a search that goes deeper holds at 192 MiB
SCANNED_PER_STEP = 64  # vectors that an HNSW index can scan in order while it walks to one more

Efforts = tuple[tuple[int, int], ...]


class FaissIndex:
    """Inner products over all vectors (``flat``), a graph (``hnsw``) or the lists nearest to a query (``ivf``).

    The effort is what an approximate kind trades for recall: lists to probe, or the width of the walk through the
    graph. It grows with the depth of a search and with the rarity of what a mask allows; a ``flat`` index counts
    as one list that is always probed. With ``ivf-sq8`` and ``ivf-pq`` scores are those of the codes.

    The CPU index is the master: it is what is saved, and what answers where the GPU cannot (a narrow mask, more
    than 2048 results or lists).

    Args:
        master: A FAISS index of a type in ``faiss_master.TYPES`` that holds n >= 1 vectors.
        device: A torch device string.
        efforts: (depth, effort) by ascending depth; between them and beyond, the effort is a power of the depth.
        multi_gpu: As in ``IndexConfig``.
        deleted: bool (n,); None where all rows live.
        recall: As measured before.
    """

    engine = "faiss"

    def __init__(
        self,
        master: Any,
        *,
        device: str,
        efforts: Efforts = ((1, 1),),
        multi_gpu: MultiGpu = "none",
        deleted: Mask | None = None,
        recall: float | None = None,
    ) -> None:
        self.kind = faiss_master.TYPES[type(master).__name__]
        self.size, self.dim = int(master.ntotal), int(master.d)
        self.deleted = grown(np.zeros(0, dtype=np.bool_), self.size) if deleted is None else deleted
        self.efforts, self.recall = efforts, recall
        self._n_lists = int(getattr(master, "nlist", 1))
        self._master, self._asked_device, self._multi_gpu = master, device, multi_gpu
        self._gpu_lock = Lock()
        self._refresh_gpu()

    @classmethod
    def flat(cls, vectors: FloatArray, *, device: str, multi_gpu: MultiGpu = "none") -> FaissIndex:
        """Exact search over float32 (n, d) unit vectors, which are copied.

        Raises:
            RuntimeError: FAISS cannot be imported.
        """
        return cls(faiss_master.make_flat(vectors), device=device, multi_gpu=multi_gpu)

    @classmethod
    def hnsw(cls, vectors: FloatArray, *, ef_search: int, device: str) -> FaissIndex:
        """Walks ``ef_search`` wide through a graph of float32 (n, d) unit vectors (copied), on the CPU.

        Raises:
            RuntimeError: FAISS cannot be imported.
        """
        return cls(faiss_master.make_hnsw(vectors), device=device, efforts=((1, ef_search),))

    @classmethod
    def ivf(
        cls,
        vectors: FloatArray,
        *,
        n_lists: int,
        n_probe: int,
        device: str,
        codes: str = "flat",
        multi_gpu: MultiGpu = "none",
        seed: int = 0,
    ) -> FaissIndex:
        """Search in ``n_probe`` of ``n_lists`` k-means cells of float32 (n, d) unit vectors (copied as ``codes``).

        Raises:
            RuntimeError: FAISS cannot be imported, or there are fewer vectors than lists.
        """
        master = faiss_master.make_ivf(vectors, n_lists=n_lists, codes=codes, seed=seed)
        return cls(master, device=device, efforts=((1, n_probe),), multi_gpu=multi_gpu)

    @property
    def bytes_per_item(self) -> int:
        """Memory of the master."""
        return bytes_per_item(self.kind, self.size, self.dim, self._n_lists)

    @property
    def setting(self) -> str:
        """The effort for 100 results."""
        if self.kind == "flat":
            return ""
        return f"{'ef_search' if self.kind == 'hnsw' else 'n_probe'} {round(effort_at(self.efforts, 100))}"

    @property
    def most_effort(self) -> int:
        """The effort that finds everything."""
        return self.size if self.kind == "hnsw" else self._n_lists

    def least_effort(self, depth: int, n_allowed: int | None = None) -> int:
        """The effort below which not even the rows wanted are met: a walk as wide, or lists that hold twice as many."""
        n_allowed = self.size if n_allowed is None else n_allowed
        return depth if self.kind == "hnsw" else math.ceil(2 * depth * self._n_lists / n_allowed)

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query; see ``VectorIndex.search``.

        Never returns fewer rows than there are: where rows are missing it looks everywhere.
        """
        return guarded_search(self._search, self, queries, k, allowed)

    def add(self, vectors: FloatArray) -> None:
        """Append rows; see ``VectorIndex.add``. A GPU gets a new copy: add many at a time."""
        vectors = check_addition(self, vectors)
        faiss_master.add(self._master, vectors)
        self.size, self.deleted = int(self._master.ntotal), grown(self.deleted, len(vectors))
        self._refresh_gpu()

    def delete(self, rows: RowArray) -> None:
        """Hide rows for good; see ``VectorIndex.delete``."""
        mark_deleted(self.deleted, rows)

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` (the CPU form) and ``index.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        faiss_master.write_master(self._master, folder / INDEX_FILE)
        write_header(folder, self, efforts=self.efforts, multi_gpu=self._multi_gpu)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> FaissIndex:
        """Read what ``save`` wrote.

        Raises:
            ValueError: A file is missing, unreadable, or contradicts the header.
            RuntimeError: FAISS cannot be imported.
        """
        header = read_header(folder)
        index = cls(
            faiss_master.read_master(folder / INDEX_FILE),
            device=device,
            efforts=_read_efforts(folder, header),
            multi_gpu=header.get("multi_gpu", "none"),
            deleted=read_deleted(folder, header),
            recall=header["recall"],
        )
        check_header(folder, header, size=index.size, dim=index.dim)
        if index.kind != header["kind"]:
            raise ValueError(f"{folder}: the file is {index.kind}, its header says {header['kind']}; build it again")
        return index

    def _refresh_gpu(self) -> None:
        self._gpu = faiss_master.on_gpu(self._master, self._asked_device, self._multi_gpu)
        self._gpu_effort = 0
        on = {"none": self._asked_device, "shard": "cuda, sharded", "replicate": "cuda, replicated"}
        self.device = "cpu" if self._gpu is None else on[self._multi_gpu]

    def _search(self, queries: FloatArray, k: int, allowed: Mask | None) -> Hits:
        if allowed is None:
            return self._complete(queries, k, self.size, None)
        n_allowed, selector = int(allowed.sum()), faiss_master.selector(allowed)
        filters_inside = self.kind != "flat" and self._gpu is None
        if filters_inside or n_allowed < WIDE_MASK * self.size:
            return self._complete(queries, k, n_allowed, selector)
        rows, scores, short = self._overfetched(queries, k, allowed, n_allowed)
        if short.any():
            rows[short], scores[short] = self._complete(queries[short], k, n_allowed, selector)
        return rows, scores

    def _overfetched(
        self, queries: FloatArray, k: int, allowed: Mask, n_allowed: int
    ) -> tuple[RowArray, FloatArray, Mask]:
        """The k best allowed of the best of all rows, and which queries have fewer than k of them there."""
        depth = min(self.size, math.ceil(1.5 * k * self.size / n_allowed))
        rows, scores = self._ranked(queries, depth, depth + 1, self._effort(depth), None)
        kept = allowed[rows] & (rows >= 0)
        best = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
        return rows, scores, kept.sum(axis=1) < k

    def _complete(self, queries: FloatArray, k: int, n_allowed: int, selector: Any) -> Hits:
        """The k best that the effort finds, with ever more of it where that finds too few."""
        effort = self._effort(k, n_allowed)
        rows, scores = self._ranked(queries, k, k + 1, effort, selector)
        while effort < self.most_effort and len(short := _short(rows, min(k, n_allowed))):
            effort = min(4 * effort, self.most_effort)
            rows[short], scores[short] = self._ranked(queries[short], k, k + 1, effort, selector)
        return rows, scores

    def _effort(self, depth: int, n_allowed: int | None = None) -> int:
        """The effort for a depth; the rarer the allowed rows, the more it takes to meet as many of them."""
        n_allowed = self.size if n_allowed is None else n_allowed
        tuned = math.ceil(effort_at(self.efforts, depth) * self.size / n_allowed)
        effort = max(tuned, self.least_effort(depth, n_allowed))
        if self.kind == "hnsw" and effort * SCANNED_PER_STEP > n_allowed:
            return self.most_effort
        return min(effort, self.most_effort)

    def _ranked(self, queries: FloatArray, k: int, depth: int, effort: int, selector: Any) -> Hits:
        """The k best of a search ``depth`` > k deep, deeper where equal scores straddle the k-th place."""
        if self.kind in CODED:  # equal codes are not equal vectors
            depth = k
        depth = min(depth, self.size)
        rows, scores = self._raw(queries, depth, effort, selector)
        order = np.lexsort((rows, -scores))
        rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        tied = np.flatnonzero((scores[:, k - 1] == scores[:, -1]) & (rows[:, -1] >= 0))
        rows, scores = rows[:, :k].copy(), scores[:, :k].copy()
        if k < depth < self.size and len(tied):
            block = max(1, HITS_AT_ONCE // (4 * depth))
            for start in range(0, len(tied), block):
                part = tied[start : start + block]
                rows[part], scores[part] = self._ranked(queries[part], k, 4 * depth, effort, selector)
        return rows, scores

    def _raw(self, queries: FloatArray, depth: int, effort: int, selector: Any) -> Hits:
        if self._gpu is not None and selector is None and max(depth, effort) <= GPU_DEPTH:
            scores, rows = self._on_gpu(queries, depth, effort)
        elif self.kind == "hnsw" and effort == self.most_effort:
            storage = require_faiss().downcast_index(self._master.storage)
            scores, rows = storage.search(queries, depth, params=self._parameters("flat", depth, 1, selector))
        else:
            parameters = self._parameters(self.kind, depth, effort, selector)
            scores, rows = self._master.search(queries, depth, params=parameters)
        scores[rows < 0] = -np.inf  # FAISS writes the lowest float
        return rows, scores

    def _on_gpu(self, queries: FloatArray, depth: int, effort: int) -> tuple[FloatArray, RowArray]:
        with self._gpu_lock:  # a GPU index shares its scratch memory and its setting between its searches
            if self.kind != "flat" and effort != self._gpu_effort:
                require_faiss().GpuParameterSpace().set_index_parameter(self._gpu, "nprobe", effort)
                self._gpu_effort = effort
            scores, rows = self._gpu.search(queries, depth)
        return scores, rows

    def _parameters(self, kind: str, depth: int, effort: int, selector: Any) -> Any:
        faiss = require_faiss()
        if kind == "flat":
            return faiss.SearchParameters(sel=selector)
        if kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, depth))
        return faiss.SearchParametersIVF(sel=selector, nprobe=effort)


def _short(rows: RowArray, wanted: int) -> RowArray:
    return np.flatnonzero((rows >= 0).sum(axis=1) < wanted)


def effort_at(efforts: Efforts, depth: int) -> float:
    """The effort for a depth: linear between the measured ones on logarithmic scales, and so on beyond the last."""
    depths, values = np.log([known for known, _ in efforts]), np.log([effort for _, effort in efforts])
    beyond = max(0.0, math.log(depth) - float(depths[-1]))
    slope = max(0.0, float(values[-1] - values[-2]) / float(depths[-1] - depths[-2])) if len(efforts) > 1 else 0.0
    return math.exp(float(np.interp(math.log(depth), depths, values)) + slope * beyond)


def _read_efforts(folder: Path, header: dict[str, Any]) -> Efforts:
    efforts = header.get("efforts")
    try:
        read = tuple((int(depth), int(effort)) for depth, effort in efforts or ())
    except (TypeError, ValueError):
        read = ()
    depths = [depth for depth, _ in read]
    if not read or min(min(pair) for pair in read) < 1 or depths != sorted(set(depths)):
        expected = "pairs of a depth and an effort, by ascending depth"
        raise ValueError(f"{folder}: efforts must be {expected}, got {efforts!r}; build the index again")
    return read
