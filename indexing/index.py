"""The vector index: its protocol, its configuration, and the rules that all kinds obey.

Owns what is true of every kind: which vectors and queries are taken, the shape and order of answers. Does not own
the searching (``exact.py``, ``faiss_index.py``, ``rescored.py``), the choice between kinds (``building.py``) nor
the files (``index_file.py``), and knows rows, never item ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
RowArray = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hits = tuple[RowArray, FloatArray]

Kind = Literal["auto", "exact", "flat", "hnsw", "ivf", "ivf-sq8", "ivf-pq"]
KINDS: tuple[str, ...] = get_args(Kind)
MultiGpu = Literal["none", "shard", "replicate"]

UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Which index is built, how well it must find, and what it may cost.

    Attributes:
        kind: ``exact`` (torch) and ``flat`` (FAISS) look at every vector. ``hnsw`` walks a graph. ``ivf`` looks at
            the lists nearest to the query; ``ivf-sq8`` and ``ivf-pq`` hold codes of d and about d/4 bytes there
            and rescore what they find with the full vectors. ``auto`` decides by size, memory and device.
        memory_budget_mb: MiB that ``auto`` may spend on the index; the caller's matrix, which ``ivf-sq8``,
            ``ivf-pq`` and ``search_dim`` read but do not copy, does not count.
        target_recall: Share of the true best 100, 300 and 1,000, that an approximate kind must find on average.
        search_dim: Search in so many dimensions, 2 or more, which keep what users' vectors ask for best (see
            ``shortening.py``), and rescore with all; None searches in all.
        ivf_from: Number of vectors at and above which ``auto`` no longer scans all on a CPU.
        n_lists: Number of IVF lists; ``None`` takes about 4 * sqrt(n). Source: FAISS wiki, "Guidelines to
            choose an index", which gives 4 * sqrt(n) to 16 * sqrt(n).
        n_probe: IVF lists scanned for one query; ``None`` takes as few as reach ``target_recall``.
        ef_search: Width of the walk through an HNSW graph; ``None`` as for ``n_probe``.
        multi_gpu: What several GPUs do with a ``flat``, ``ivf`` or ``ivf-sq8`` index: one of them serves, each
            holds a part (``shard``), or each holds all and takes a part of the queries (``replicate``).
        seed: Of the clustering and of the sample of queries.

    Raises:
        ValueError: A value is outside its limits.
    """

    kind: Kind = "auto"
    memory_budget_mb: int | None = None
    target_recall: float = 0.95
    search_dim: int | None = None
    ivf_from: int = 200_000
    n_lists: int | None = None
    n_probe: int | None = None
    ef_search: int | None = None
    multi_gpu: MultiGpu = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("multi_gpu", get_args(MultiGpu))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {either(known)}, got {getattr(self, name)!r}")
        least = {"memory_budget_mb": 1, "search_dim": 2, "ivf_from": 1, "n_lists": 1, "n_probe": 1, "ef_search": 1}
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise ValueError(f"{name} must be at least {limit}, got {value}")
        if not 0 < self.target_recall <= 1:
            raise ValueError(f"target_recall is a share, it must lie in (0, 1], got {self.target_recall}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


class VectorIndex(Protocol):
    """Finds the rows whose vectors have the largest inner product with a query.

    Rows may be added and deleted while nobody searches; a search by several threads is fine.

    Attributes:
        kind: As in ``IndexConfig``.
        engine: The library that searches, ``torch`` or ``faiss``.
        device: Where it searches, such as ``cpu`` or ``cuda:0``.
        size: Number of rows n, deleted ones included.
        dim: Length d of a vector.
        deleted: bool (n,).
        recall: Share of the true best 100 that a sample of queries found; None for a kind that finds all.
    """

    kind: str
    engine: str
    device: str
    size: int
    dim: int
    deleted: Mask
    recall: float | None

    @property
    def bytes_per_item(self) -> int:
        """Memory held for one row, without matrices of the caller."""

    @property
    def setting(self) -> str:
        """What decides between speed and recall, such as ``n_probe 16``; empty where nothing does."""

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query.

        Args:
            queries: float32 (q, d). One without a direction (not finite, or zero) finds nothing.
            k: How many rows are wanted, at least 1.
            allowed: bool (n,); only rows that are true may be returned. ``None`` allows all but deleted ones.

        Returns:
            Rows int64 (q, k') and scores float32 (q, k') with k' = min(k, n): score descending, equal scores
            by row ascending. Where fewer than k' vectors are allowed the tail is row -1 with score -inf.
            Approximate kinds may miss a row, but the scores are right and there are never fewer rows than
            the exact answer has. The score of one pair may differ in its last bits from one batch to another.

        Raises:
            ValueError: ``queries``, ``k`` or ``allowed`` has the wrong dtype, shape or range.
        """

    def add(self, vectors: FloatArray) -> None:
        """Append float32 (m, d) unit vectors as rows n to n + m - 1; they are found at once.

        Lists and codes stay as they were trained: build the index again once it has grown by half.

        Raises:
            ValueError: A vector is not finite, zero or not of unit length, or ``vectors`` has another shape.
        """

    def delete(self, rows: RowArray) -> None:
        """Never return these rows again, in this process or after ``save``; the other rows keep their numbers.

        Raises:
            ValueError: ``rows`` are not integers in 0..n-1.
        """

    def save(self, folder: Path) -> None:
        """Write the index into ``folder`` (made where absent) for ``load_index`` on any machine."""


def build_index(
    vectors: FloatArray, config: IndexConfig, *, device: str, queries: Callable[[], FloatArray] | None = None
) -> VectorIndex:
    """Build the index that ``config`` asks for, and tune it to the recall that is asked for.

    Approximate kinds are built as ``flat`` below 10,000 vectors: an exact scan is fast there.

    Args:
        vectors: float32 (n, d) with n >= 1, each of unit length. ``exact``, ``flat``, ``hnsw`` and ``ivf`` copy
            them; with ``ivf-sq8``, ``ivf-pq`` or ``search_dim`` the index reads this array: do not change it.
        config: Kind and layout.
        device: A torch device string. FAISS uses a CUDA device only where its GPU build is installed.
        queries: Makes float32 (q, d) to tune on, and to learn short vectors for; called where it is needed. ``None``
            makes some from pairs of vectors.

    Raises:
        ValueError: A vector is not finite, zero or not of unit length, there are too few for ``n_lists``, or
            ``config`` asks for what such vectors do not allow.
        RuntimeError: A kind of FAISS is asked for and FAISS cannot be imported.
    """
    from indexing.building import build

    check_unit(vectors)
    if vectors.size == 0:
        raise ValueError(f"an index needs at least one vector, got shape {vectors.shape}")
    if config.search_dim is not None and config.search_dim > vectors.shape[1]:
        raise ValueError(f"search_dim={config.search_dim} exceeds the {vectors.shape[1]} dimensions of the vectors")
    return build(vectors, config, device=device, queries=queries)


def load_index(folder: Path, *, device: str) -> VectorIndex:
    """Read an index that ``VectorIndex.save`` wrote.

    Raises:
        ValueError: A file is missing, unreadable, or contradicts the header.
        RuntimeError: The index is a FAISS index and FAISS cannot be imported.
    """
    from indexing.exact import ExactIndex
    from indexing.faiss_index import FaissIndex
    from indexing.index_file import HEADER, read_header
    from indexing.rescored import RescoredIndex

    header = read_header(folder)
    kind = header["kind"]
    if kind not in KINDS[1:]:
        raise ValueError(f"{folder / HEADER}: unknown index kind {kind!r}; known are {either(KINDS[1:])}")
    if "overfetch" in header:
        return RescoredIndex.load(folder, device=device)
    if kind == "exact":
        return ExactIndex.load(folder, device=device)
    return FaissIndex.load(folder, device=device)


def index_summary(index: VectorIndex) -> str:
    """One line for logs and reports.

    Such as ``ivf (faiss, cpu), 1,000,000 x 384, recall@100 0.972 at n_probe 16, 1,552 bytes/item``.
    """
    found = "exact" if index.recall is None else f"recall@100 {index.recall:.3f} at {index.setting}"
    deleted = int(index.deleted.sum())
    parts = [f"{index.kind} ({index.engine}, {index.device})", f"{index.size:,} x {index.dim}", found]
    parts += [f"{index.bytes_per_item:,} bytes/item", *([f"{deleted:,} deleted"] if deleted else [])]
    return ", ".join(parts)


def guarded_search(
    search: Callable[[FloatArray, int, Mask | None], Hits],
    index: VectorIndex,
    queries: FloatArray,
    k: int,
    allowed: Mask | None,
) -> Hits:
    """Check the arguments, search the queries that have a direction, and leave -1 / -inf for the others.

    Args:
        search: Takes contiguous queries (q, d) of finite, non-zero length, k in 1..n, and the mask without
            deleted rows.
        index: Gives n, d and what is deleted.
        queries: As in ``VectorIndex.search``.
        k: As in ``VectorIndex.search``.
        allowed: As in ``VectorIndex.search``.

    Raises:
        ValueError: As in ``VectorIndex.search``.
    """
    _check_arguments(index, queries, k, allowed)
    k = min(k, index.size)
    if index.deleted.any():
        allowed = ~index.deleted if allowed is None else allowed & ~index.deleted
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    norms = _norms(queries)
    searchable = np.isfinite(norms) & (norms > 0)
    if searchable.any() and (allowed is None or allowed.any()):
        rows[searchable], scores[searchable] = search(np.ascontiguousarray(queries[searchable]), k, allowed)
    return rows, scores


def _norms(vectors: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        norms: FloatArray = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return norms


def are_unit(vectors: FloatArray) -> Mask:
    """Which rows are finite and of unit length within ``UNIT_TOLERANCE``, bool (n,)."""
    return np.asarray(np.abs(_norms(vectors) - 1) <= UNIT_TOLERANCE)  # NaN is not within


def _check_matrix(name: str, matrix: FloatArray) -> None:
    if matrix.dtype != np.float32 or matrix.ndim != 2:
        raise ValueError(f"{name} must be a float32 matrix, got {matrix.dtype} of shape {matrix.shape}")


def check_unit(vectors: FloatArray) -> None:
    """Refuse what is no float32 (m, d) of unit vectors.

    Raises:
        ValueError: Wrong dtype or shape, or a vector is not finite, zero or not of unit length.
    """
    _check_matrix("vectors", vectors)
    norms = _norms(vectors)
    _refuse(
        ~np.isfinite(norms),
        len(vectors),
        "hold a value that is not finite; look at the texts and the encoder",
    )
    _refuse(norms == 0, len(vectors), "are zero; leave out items without a text")
    _refuse(np.abs(norms - 1) > UNIT_TOLERANCE, len(vectors), f"are not of unit length (within {UNIT_TOLERANCE})")


def check_addition(index: VectorIndex, vectors: FloatArray) -> FloatArray:
    """The vectors to add, contiguous.

    Raises:
        ValueError: As in ``VectorIndex.add``.
    """
    check_unit(vectors)
    if vectors.shape[1] != index.dim:
        raise ValueError(f"vectors have {vectors.shape[1]} dimensions, the index has {index.dim}; use its encoder")
    return np.ascontiguousarray(vectors)


def grown(deleted: Mask, n_added: int) -> Mask:
    """The mask of deleted rows with ``n_added`` living rows behind it."""
    return np.concatenate([deleted, np.zeros(n_added, dtype=np.bool_)])


def mark_deleted(deleted: Mask, rows: RowArray) -> None:
    """Set ``rows`` in ``deleted``, in place.

    Raises:
        ValueError: As in ``VectorIndex.delete``.
    """
    rows = np.asarray(rows)
    if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(deleted)):
        raise ValueError(f"rows to delete must be integers in 0..{len(deleted) - 1}, got {rows.dtype} {rows[:5]}")
    deleted[rows.astype(np.int64)] = True


def either(names: tuple[str, ...]) -> str:
    """The names as a message lists them: ``'a', 'b' or 'c'``."""
    quoted = [repr(name) for name in names]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _refuse(bad: Mask, n: int, fault: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise ValueError(f"{len(rows):,} of {n:,} vectors {fault}; first rows: {rows[:5].tolist()}")


def _check_arguments(index: VectorIndex, queries: FloatArray, k: int, allowed: Mask | None) -> None:
    _check_matrix("queries", queries)
    if queries.shape[1] != index.dim:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the index has {index.dim}; use its encoder")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != (index.size,)):
        raise ValueError(f"allowed must be bool of shape ({index.size},), got {allowed.dtype} of shape {allowed.shape}")
