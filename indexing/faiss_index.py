"""Search with FAISS, on the CPU or a CUDA device; the only module that imports faiss.

Importing it without FAISS is fine: ``faiss_build`` then answers None and the first use raises. One setting of
FAISS is changed for the whole process: the size from which a search uses BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from indexing.index import (
    FloatArray,
    Hits,
    Mask,
    RowArray,
    check_header,
    guarded_search,
    read_header,
    write_header,
)

INDEX_FILE = "index.faiss"
GPU_DEPTH = 2048  # FAISS's k-selection on the GPU takes neither more results nor more lists
WIDE_MASK = 0.25  # from this share of allowed rows, a scan of all rows with BLAS beats one of the allowed without
HITS_AT_ONCE = 1 << 24  # 12 bytes each: bounds what a search that goes deeper holds at 192 MiB


class FaissIndex:
    """Inner products over all vectors (``flat``) or over the lists nearest to a query (``ivf``).

    The CPU index is the master: it is what is saved, and what answers where the GPU cannot (a mask, k of 2048
    or more). A ``flat`` index counts as one list that is always probed.

    Args:
        master: A FAISS ``IndexFlatIP`` or ``IndexIVFFlat`` that holds n >= 1 vectors.
        n_probe: Lists to look at for one query; at most all.
        device: A torch device string.
    """

    engine = "faiss"

    def __init__(self, master: Any, *, n_probe: int, device: str) -> None:
        self.kind = "ivf" if hasattr(master, "nlist") else "flat"
        self.size, self.dim = int(master.ntotal), int(master.d)
        self._n_lists = int(getattr(master, "nlist", 1))
        self._n_probe = min(n_probe, self._n_lists)
        if self.kind == "ivf":
            master.nprobe = self._n_probe
        self._master = master
        self._gpu = _on_gpu(master, device) if self._n_probe <= GPU_DEPTH else None
        self._gpu_lock = Lock()
        self.device = "cpu" if self._gpu is None else device

    @classmethod
    def flat(cls, vectors: FloatArray, *, device: str) -> FaissIndex:
        """Exact search over float32 (n, d) unit vectors, which are copied.

        Raises:
            RuntimeError: FAISS cannot be imported.
        """
        master = _require_faiss().IndexFlatIP(vectors.shape[1])
        master.add(np.ascontiguousarray(vectors))
        return cls(master, n_probe=1, device=device)

    @classmethod
    def ivf(cls, vectors: FloatArray, *, n_lists: int, n_probe: int, device: str) -> FaissIndex:
        """Search in ``n_probe`` of ``n_lists`` k-means cells of float32 (n, d) unit vectors (copied).

        Raises:
            RuntimeError: FAISS cannot be imported, or there are fewer vectors than lists.
        """
        faiss = _require_faiss()
        vectors = np.ascontiguousarray(vectors)
        dim = vectors.shape[1]
        master = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT)
        master.train(vectors)
        master.add(vectors)
        return cls(master, n_probe=n_probe, device=device)

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query; see ``VectorIndex.search``.

        ``ivf`` is approximate in which rows it finds, not in their scores, and never returns fewer rows than
        there are: with a mask it probes more lists, and where rows are still missing it probes all.
        """
        return guarded_search(self._search, self, queries, k, allowed)

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` (the CPU form) and ``index.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        _require_faiss().write_index(self._master, str(folder / INDEX_FILE))
        write_header(folder, self, n_probe=self._n_probe)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> FaissIndex:
        """Read what ``save`` wrote.

        Raises:
            ValueError: A file is missing, unreadable, or contradicts the header.
            RuntimeError: FAISS cannot be imported.
        """
        header = read_header(folder)
        index = cls(_read_master(folder / INDEX_FILE), n_probe=int(header.get("n_probe", 1)), device=device)
        check_header(folder, header, size=index.size, dim=index.dim)
        if index.kind != header["kind"]:
            raise ValueError(f"{folder}: the file is {index.kind}, its header says {header['kind']}; build it again")
        return index

    def _search(self, queries: FloatArray, k: int, allowed: Mask | None) -> Hits:
        if allowed is None:
            return self._complete(queries, k, self.size, None)
        n_allowed, selector = int(allowed.sum()), _selector(allowed)
        if self.kind == "ivf" or n_allowed < WIDE_MASK * self.size:
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
        rows, scores = self._ranked(queries, depth, depth + 1, self._n_probe, None)
        kept = allowed[rows]
        best = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
        return rows, scores, kept.sum(axis=1) < k

    def _complete(self, queries: FloatArray, k: int, n_allowed: int, selector: Any) -> Hits:
        """The k best of the lists that are probed, or of all lists where those hold too few."""
        # The rarer the allowed rows, the more lists it takes to meet as many of them.
        n_probe = min(self._n_lists, math.ceil(self._n_probe * self.size / n_allowed))
        rows, scores = self._ranked(queries, k, k + 1, n_probe, selector)
        short = (rows >= 0).sum(axis=1) < min(k, n_allowed)
        if n_probe < self._n_lists and short.any():
            rows[short], scores[short] = self._ranked(queries[short], k, k + 1, self._n_lists, selector)
        return rows, scores

    def _ranked(self, queries: FloatArray, k: int, depth: int, n_probe: int, selector: Any) -> Hits:
        """The k best of a search ``depth`` > k deep, deeper where equal scores straddle the k-th place."""
        depth = min(depth, self.size)
        rows, scores = self._raw(queries, depth, n_probe, selector)
        order = np.lexsort((rows, -scores))
        rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        tied = np.flatnonzero((scores[:, k - 1] == scores[:, -1]) & (rows[:, -1] >= 0))
        rows, scores = rows[:, :k].copy(), scores[:, :k].copy()
        if depth < self.size and len(tied):
            block = max(1, HITS_AT_ONCE // (4 * depth))
            for start in range(0, len(tied), block):
                part = tied[start : start + block]
                rows[part], scores[part] = self._ranked(queries[part], k, 4 * depth, n_probe, selector)
        return rows, scores

    def _raw(self, queries: FloatArray, depth: int, n_probe: int, selector: Any) -> Hits:
        if self._gpu is not None and selector is None and n_probe == self._n_probe and depth <= GPU_DEPTH:
            with self._gpu_lock:  # a GPU index shares scratch memory between its searches
                scores, rows = self._gpu.search(queries, depth)
        else:
            scores, rows = self._master.search(queries, depth, params=self._parameters(n_probe, selector))
        scores[rows < 0] = -np.inf  # FAISS writes the lowest float
        return rows, scores

    def _parameters(self, n_probe: int, selector: Any) -> Any:
        faiss = _require_faiss()
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(sel=selector, nprobe=n_probe)
        return faiss.SearchParameters(sel=selector)


def faiss_build() -> str | None:
    """Which FAISS can be imported: ``cpu``, ``gpu`` (it may still find no device), or None."""
    faiss, _ = _import_faiss()
    if faiss is None:
        return None
    return "gpu" if hasattr(faiss, "StandardGpuResources") else "cpu"


def both_builds_installed() -> bool:
    """Whether a CPU and a GPU build of FAISS are installed side by side, where each overwrites the other."""
    names = {(found.metadata["Name"] or "").lower().replace("_", "-") for found in distributions()}
    return "faiss-cpu" in names and any(name.startswith("faiss-gpu") for name in names)


@cache
def _import_faiss() -> tuple[Any, Exception | None]:
    try:
        import faiss
    except Exception as error:  # the GPU build raises RuntimeError where its CUDA libraries are missing
        return None, error
    # Since 1.15 the threshold counts queries * dimensions and stands at 128,000, which keeps batches of up to
    # 333 queries of 384 dimensions off BLAS: 20 times slower on few cores. Older builds count queries, 20.
    if faiss.cvar.distance_compute_blas_threshold > 20:
        faiss.cvar.distance_compute_blas_threshold = 800 * faiss.omp_get_max_threads()
    return faiss, None


def _require_faiss() -> Any:
    faiss, error = _import_faiss()
    if faiss is None:
        raise RuntimeError(
            f'FAISS cannot be imported ({error}); pip install "recsys-twostage[cpu]" (or "[gpu]"), '
            'or use the index kind "exact"'
        ) from error
    return faiss


def _on_gpu(master: Any, device: str) -> Any:
    """A copy of the index on a CUDA device, or None where there is none or it is not asked for."""
    faiss = _require_faiss()
    if not device.startswith("cuda") or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    ordinal = int(device.partition(":")[2] or 0)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), ordinal, master)


def _selector(allowed: Mask) -> Any:
    return _require_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _read_master(path: Path) -> Any:
    faiss = _require_faiss()
    try:
        with _reader_limits(faiss, path.stat().st_size):
            master = faiss.read_index(str(path))
    except (OSError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({error}); build the index again") from error
    if not isinstance(master, faiss.IndexFlatIP | faiss.IndexIVFFlat):
        raise ValueError(f"{path} holds a {type(master).__name__}, not a flat or IVF-flat index; build the index again")
    return master


@contextmanager
def _reader_limits(faiss: Any, n_bytes: int) -> Iterator[None]:
    """No array or loop of the file may claim to be longer than the file, where this FAISS can check that."""
    names = ("deserialization_vector_byte_limit", "deserialization_loop_limit")
    before = {name: getattr(faiss, f"get_{name}")() for name in names if hasattr(faiss, f"set_{name}")}
    try:
        for name in before:
            getattr(faiss, f"set_{name}")(n_bytes)
        yield
    finally:
        for name, limit in before.items():
            getattr(faiss, f"set_{name}")(limit)
