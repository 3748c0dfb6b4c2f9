"""The vector index: its protocol, its configuration, the choice between kinds, the rules that all obey.

Owns what is true of every kind: which vectors and queries are taken, the shape and order of answers, the
header on disk. Does not own the searching (``exact.py``, ``faiss_index.py``), and knows rows, never item ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
RowArray = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hits = tuple[RowArray, FloatArray]

HEADER = "index.json"
IVF_MINIMUM = 10_000  # below it an exact scan costs less than the lists are worth
VECTORS_PER_LIST = 39  # FAISS's ClusteringParameters.min_points_per_centroid: fewer give poor centroids
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Which index is built, and how an inverted-file (IVF) index is laid out.

    Attributes:
        kind: ``auto`` takes ``exact`` without FAISS, else ``flat`` below ``ivf_from`` vectors, else ``ivf``.
        ivf_from: Number of vectors at and above which ``auto`` takes ``ivf``.
        n_lists: Number of IVF lists; ``None`` takes about 4 * sqrt(n). Source: FAISS wiki, "Guidelines to
            choose an index", which gives 4 * sqrt(n) to 16 * sqrt(n).
        n_probe: IVF lists scanned for one query; more is slower and finds more.

    Raises:
        ValueError: A value is outside its limits.
    """

    kind: Literal["auto", "exact", "flat", "ivf"] = "auto"
    ivf_from: int = 200_000
    n_lists: int | None = None
    n_probe: int = 32

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "exact", "flat", "ivf"):
            raise ValueError(f"kind must be 'auto', 'exact', 'flat' or 'ivf', got {self.kind!r}")
        for name in ("ivf_from", "n_lists", "n_probe"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class VectorIndex(Protocol):
    """Finds the rows whose vectors have the largest inner product with a query.

    Attributes:
        kind: ``exact``, ``flat`` or ``ivf``.
        engine: The library that searches, ``torch`` or ``faiss``.
        device: Where it searches, such as ``cpu`` or ``cuda:0``.
        size: Number of vectors n.
        dim: Length d of a vector.
    """

    kind: str
    engine: str
    device: str
    size: int
    dim: int

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query.

        Args:
            queries: float32 (q, d). One without a direction (not finite, or zero) finds nothing.
            k: How many rows are wanted, at least 1.
            allowed: bool (n,); only rows that are true may be returned. ``None`` allows all.

        Returns:
            Rows int64 (q, k') and scores float32 (q, k') with k' = min(k, n): score descending, equal scores
            by row ascending. Where fewer than k' vectors are allowed the tail is row -1 with score -inf.
            The score of one pair may differ in its last bits from one batch to another.

        Raises:
            ValueError: ``queries``, ``k`` or ``allowed`` has the wrong dtype, shape or range.
        """

    def save(self, folder: Path) -> None:
        """Write the index into ``folder`` (made where absent) for ``load_index`` on any machine."""


def build_index(vectors: FloatArray, config: IndexConfig, *, device: str) -> VectorIndex:
    """Build the index that ``config`` asks for.

    ``ivf`` is built as ``flat`` below 10,000 vectors: an exact scan is fast there, lists would be too small.

    Args:
        vectors: float32 (n, d) with n >= 1, each of unit length. They are copied.
        config: Kind and layout.
        device: A torch device string. FAISS uses a CUDA device only where its GPU build is installed.

    Raises:
        ValueError: A vector is not finite, zero or not of unit length, or there are too few for ``n_lists``.
        RuntimeError: ``flat`` or ``ivf`` is asked for and FAISS cannot be imported.
    """
    from indexing.exact import ExactIndex
    from indexing.faiss_index import FaissIndex, faiss_build

    _check_vectors(vectors)
    kind = _resolve_kind(config, len(vectors), has_faiss=faiss_build() is not None)
    if kind == "exact":
        return ExactIndex(vectors, device=device)
    if kind == "flat":
        return FaissIndex.flat(vectors, device=device)
    n_lists = _n_lists(config, len(vectors))
    return FaissIndex.ivf(vectors, n_lists=n_lists, n_probe=config.n_probe, device=device)


def load_index(folder: Path, *, device: str) -> VectorIndex:
    """Read an index that ``VectorIndex.save`` wrote.

    Raises:
        ValueError: A file is missing, unreadable, or contradicts the header.
        RuntimeError: The index is a FAISS index and FAISS cannot be imported.
    """
    from indexing.exact import ExactIndex
    from indexing.faiss_index import FaissIndex

    kind = read_header(folder)["kind"]
    if kind == "exact":
        return ExactIndex.load(folder, device=device)
    if kind in ("flat", "ivf"):
        return FaissIndex.load(folder, device=device)
    raise ValueError(f"{folder / HEADER}: unknown index kind {kind!r}; known are 'exact', 'flat' and 'ivf'")


def index_summary(index: VectorIndex) -> str:
    """One line for logs and reports, such as ``flat (faiss, cpu), 92,331 x 384``."""
    return f"{index.kind} ({index.engine}, {index.device}), {index.size:,} x {index.dim}"


def guarded_search(
    search: Callable[[FloatArray, int, Mask | None], Hits],
    index: VectorIndex,
    queries: FloatArray,
    k: int,
    allowed: Mask | None,
) -> Hits:
    """Check the arguments, search the queries that have a direction, and leave -1 / -inf for the others.

    Args:
        search: Takes contiguous queries (q, d) of finite, non-zero length, k in 1..n, and the mask.
        index: Gives n and d.
        queries: As in ``VectorIndex.search``.
        k: As in ``VectorIndex.search``.
        allowed: As in ``VectorIndex.search``.

    Raises:
        ValueError: As in ``VectorIndex.search``.
    """
    _check_arguments(index, queries, k, allowed)
    k = min(k, index.size)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    norms = _norms(queries)
    searchable = np.isfinite(norms) & (norms > 0)
    if searchable.any() and (allowed is None or allowed.any()):
        rows[searchable], scores[searchable] = search(np.ascontiguousarray(queries[searchable]), k, allowed)
    return rows, scores


def write_header(folder: Path, index: VectorIndex, **extra: int) -> None:
    """Write ``index.json``: kind, size, dim and what a kind needs besides."""
    header = {"kind": index.kind, "size": index.size, "dim": index.dim, **extra}
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def read_header(folder: Path) -> dict[str, Any]:
    """Read ``index.json``.

    Raises:
        ValueError: It is missing, not JSON, or lacks a key.
    """
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the header of an index ({error}); build the index again") from error
    if not isinstance(header, dict) or not {"kind", "size", "dim"} <= header.keys():
        raise ValueError(f"{path} must hold an object with kind, size and dim; build the index again")
    return header


def check_header(folder: Path, header: dict[str, Any], *, size: int, dim: int) -> None:
    """Compare what was read with what the header promises.

    Raises:
        ValueError: Size or dimension differ.
    """
    if (size, dim) != (header["size"], header["dim"]):
        promised = f"{header['size']} x {header['dim']}"
        raise ValueError(f"{folder}: the index holds {size} x {dim}, its header says {promised}; build the index again")


def _resolve_kind(config: IndexConfig, n: int, *, has_faiss: bool) -> str:
    if config.kind == "exact" or (config.kind == "auto" and not has_faiss):
        return "exact"
    wants_ivf = config.kind == "ivf" or (config.kind == "auto" and n >= config.ivf_from)
    return "ivf" if wants_ivf and n >= IVF_MINIMUM else "flat"


def _n_lists(config: IndexConfig, n: int) -> int:
    limit = n // VECTORS_PER_LIST
    if config.n_lists is None:
        return min(round(4 * math.sqrt(n)), limit)
    if config.n_lists > limit:
        raise ValueError(
            f"n_lists={config.n_lists:,} is too many for {n:,} vectors: at {VECTORS_PER_LIST} vectors a list "
            f"the limit is {limit:,}; lower n_lists or leave it out"
        )
    return config.n_lists


def _norms(vectors: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        norms: FloatArray = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return norms


def _check_matrix(name: str, matrix: FloatArray) -> None:
    if matrix.dtype != np.float32 or matrix.ndim != 2:
        raise ValueError(f"{name} must be a float32 matrix, got {matrix.dtype} of shape {matrix.shape}")


def _check_vectors(vectors: FloatArray) -> None:
    _check_matrix("vectors", vectors)
    if vectors.size == 0:
        raise ValueError(f"an index needs at least one vector, got shape {vectors.shape}")
    norms = _norms(vectors)
    _refuse(
        ~np.isfinite(norms),
        len(vectors),
        "hold a value that is not finite; look at the texts and the encoder",
    )
    _refuse(norms == 0, len(vectors), "are zero; leave out items without a text")
    _refuse(np.abs(norms - 1) > UNIT_TOLERANCE, len(vectors), f"are not of unit length (within {UNIT_TOLERANCE})")


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
