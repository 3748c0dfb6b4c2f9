"""Which kind of index is built, what each costs, and the building.

Owns the choice behind ``IndexConfig(kind="auto")``. Tuning to a recall is ``tuning.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex, faiss_build
from indexing.index import FloatArray, IndexConfig, VectorIndex
from indexing.layout import CODED, bytes_per_item
from indexing.rescored import RescoredIndex
from indexing.shortening import Shortening
from indexing.tuning import sample_queries, tune

SMALLEST = 10_000  # below it an exact scan costs less than lists, a graph or codes are worth
VECTORS_PER_LIST = 39  # FAISS's ClusteringParameters.min_points_per_centroid: fewer give poor centroids
GPU_SCAN = 4_000_000  # below it a GPU scans all 384-d vectors in about the time that starting a search takes


def build(
    vectors: FloatArray, config: IndexConfig, *, device: str, queries: Callable[[], FloatArray] | None
) -> VectorIndex:
    """See ``indexing.index.build_index``, which has checked the vectors.

    Raises:
        ValueError: There are too few vectors for ``n_lists``, or no kind fits the memory budget.
        RuntimeError: A kind of FAISS is asked for and FAISS cannot be imported.
    """
    dim = config.search_dim or vectors.shape[1]
    kind = choose_kind(config, len(vectors), dim, device=device, faiss=faiss_build())
    if dim == vectors.shape[1] and kind in ("exact", "flat"):
        return _build(kind, vectors, config, device)
    asked = sample_queries(vectors, seed=config.seed) if queries is None else queries()
    if len(asked) == 0:
        raise ValueError("queries to tune on must hold at least one, got none; leave them out to have some made")
    shortening = None
    if dim < vectors.shape[1]:
        learnt, asked = _halves(asked)
        shortening = Shortening.learn(learnt, vectors, dim)
    coarse = _build(kind, vectors if shortening is None else shortening.of_vectors(vectors), config, device)
    index: FaissIndex | RescoredIndex
    if isinstance(coarse, FaissIndex) and kind not in CODED and shortening is None:
        index = coarse
    else:
        index = RescoredIndex(coarse, np.ascontiguousarray(vectors), shortening=shortening)
    tune(index, vectors, asked, target=config.target_recall, device=device, effort=_fixed_effort(kind, config))
    return index


def _halves(queries: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Queries to learn from and queries to measure with, both in turn of the same two sorts; all for both of few."""
    half = len(queries) // 4 * 2
    return (queries[:half], queries[half:]) if half else (queries, queries)


def choose_kind(config: IndexConfig, n: int, dim: int, *, device: str, faiss: str | None) -> str:
    """The kind to build; for ``auto`` the first of those that suit the size and the device that fits the budget.

    Args:
        config: The kind asked for and the memory budget.
        n: Number of vectors.
        dim: Dimensions that are searched.
        device: A torch device string.
        faiss: ``cpu``, ``gpu`` or None, as ``faiss_build`` says.

    Raises:
        ValueError: None fits.
    """
    if config.kind != "auto":
        return "flat" if config.kind not in ("exact", "flat") and n < SMALLEST else config.kind
    kinds = _suitable(config, n, device, faiss)
    if config.memory_budget_mb is None:
        return kinds[0]
    needs = {kind: _mib(kind, n, dim, config) for kind in kinds}
    fitting = [kind for kind in kinds if needs[kind] <= config.memory_budget_mb]
    if not fitting:
        raise ValueError(
            f"memory_budget_mb={config.memory_budget_mb:,} is too small for {n:,} x {dim}: "
            f"{kinds[-1]} needs {needs[kinds[-1]]:,.0f}; raise it or lower search_dim"
        )
    return fitting[0]


def _suitable(config: IndexConfig, n: int, device: str, faiss: str | None) -> tuple[str, ...]:
    """Kinds for ``auto``, the one that finds most first, the smallest last."""
    on_gpu = device.startswith("cuda")
    if faiss is None:
        return ("exact",)
    if n < SMALLEST:
        return ("exact" if on_gpu else "flat",)
    if on_gpu and (n < GPU_SCAN or faiss == "cpu"):
        return ("exact", "ivf-sq8", "ivf-pq")
    if not on_gpu and n < config.ivf_from:
        return ("flat", "ivf-sq8", "ivf-pq")
    return ("ivf", "ivf-sq8", "ivf-pq")


def _mib(kind: str, n: int, dim: int, config: IndexConfig) -> float:
    n_lists = count_lists(config.n_lists, n) if kind.startswith("ivf") else 0
    return bytes_per_item(kind, n, dim, n_lists) * n / 2**20


def _build(kind: str, vectors: FloatArray, config: IndexConfig, device: str) -> ExactIndex | FaissIndex:
    if kind == "exact":
        return ExactIndex(vectors, device=device)
    if kind == "flat":
        return FaissIndex.flat(vectors, device=device, multi_gpu=config.multi_gpu)
    if kind == "hnsw":
        return FaissIndex.hnsw(vectors, ef_search=config.ef_search or 64, device=device)
    return FaissIndex.ivf(
        vectors,
        n_lists=count_lists(config.n_lists, len(vectors)),
        n_probe=config.n_probe or 1,
        codes=kind.removeprefix("ivf-"),
        device=device,
        multi_gpu=config.multi_gpu,
        seed=config.seed,
    )


def _fixed_effort(kind: str, config: IndexConfig) -> int | None:
    """What the user has decided, which is then measured and not tuned."""
    if kind in ("exact", "flat"):
        return 1
    return config.ef_search if kind == "hnsw" else config.n_probe


def count_lists(asked: int | None, n: int) -> int:
    """Number of IVF lists for n vectors.

    Raises:
        ValueError: More are asked for than n vectors can fill.
    """
    limit = n // VECTORS_PER_LIST
    if asked is None:
        return min(round(4 * math.sqrt(n)), limit)
    if asked > limit:
        raise ValueError(
            f"n_lists={asked:,} is too many for {n:,} vectors: at {VECTORS_PER_LIST} vectors a list "
            f"the limit is {limit:,}; lower n_lists or leave it out"
        )
    return asked
