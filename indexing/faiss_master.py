"""FAISS's own objects: which build is there, making an index, reading it, copying it to GPUs.

The only module that imports faiss; doing so without FAISS is fine: ``faiss_build`` then answers None and the first
use raises. One setting of FAISS is changed for the whole process: the size from which a search uses BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from indexing.index import FloatArray, Mask, MultiGpu, RowArray
from indexing.layout import LINKS, n_subvectors

EF_CONSTRUCTION = 80  # width of the walk that finds a new vector's neighbours in an HNSW graph
TRAINING_VECTORS = 32  # per list: 64 took three to four times as long to train and found no more
TYPES = {
    "IndexFlatIP": "flat",
    "IndexHNSWFlat": "hnsw",
    "IndexIVFFlat": "ivf",
    "IndexIVFScalarQuantizer": "ivf-sq8",
    "IndexIVFPQFastScan": "ivf-pq",
}
TABLE_BYTES = 1 << 27  # reading product codes may allot tables that small files are smaller than
ON_GPU = ("flat", "ivf", "ivf-sq8")  # FAISS has neither HNSW nor the four-bit fast scan there


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


def require_faiss() -> Any:
    """The module ``faiss``.

    Raises:
        RuntimeError: It cannot be imported.
    """
    faiss, error = _import_faiss()
    if faiss is None:
        raise RuntimeError(
            f'FAISS cannot be imported ({error}); pip install "recsys-twostage[cpu]" (or "[gpu]"), '
            'or use the index kind "exact"'
        ) from error
    return faiss


def make_flat(vectors: FloatArray) -> Any:
    """An ``IndexFlatIP`` over float32 (n, d)."""
    master = require_faiss().IndexFlatIP(vectors.shape[1])
    master.add(np.ascontiguousarray(vectors))
    return master


def make_hnsw(vectors: FloatArray) -> Any:
    """An ``IndexHNSWFlat`` over float32 (n, d).

    Source: Malkov and Yashunin 2016, "Efficient and robust approximate nearest neighbor search using HNSW graphs".
    """
    faiss = require_faiss()
    master = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    master.hnsw.efConstruction = EF_CONSTRUCTION
    add(master, vectors)
    return master


def make_ivf(vectors: FloatArray, *, n_lists: int, codes: str, seed: int) -> Any:
    """Inverted lists over float32 (n, d), from k-means on a sample of them.

    Args:
        vectors: To train with and to hold.
        n_lists: Number of lists.
        codes: What the lists hold: ``flat`` vectors, ``sq8`` (one byte a dimension) or ``pq`` (two bits).
        seed: Of the clustering.

    Raises:
        RuntimeError: FAISS cannot be imported, or there are fewer vectors than lists.
    """
    faiss, dim = require_faiss(), vectors.shape[1]
    layout = (faiss.IndexFlatIP(dim), dim, n_lists)
    if codes == "sq8":
        master = faiss.IndexIVFScalarQuantizer(*layout, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    elif codes == "pq":
        master = faiss.IndexIVFPQFastScan(*layout, n_subvectors(dim), 4, faiss.METRIC_INNER_PRODUCT)
    else:
        master = faiss.IndexIVFFlat(*layout, faiss.METRIC_INNER_PRODUCT)
    master.cp.seed = 1 + seed
    master.cp.min_points_per_centroid = 1  # only the threshold of a warning on the console
    master.cp.max_points_per_centroid = TRAINING_VECTORS
    master.train(np.ascontiguousarray(vectors))
    add(master, vectors)
    return master


def add(master: Any, vectors: FloatArray) -> None:
    """Append float32 (m, d)."""
    faiss = require_faiss()
    vectors = np.ascontiguousarray(vectors)
    if not isinstance(master, faiss.IndexHNSW):
        master.add(vectors)
        return
    # Threads that link vectors at the same time make another graph each time.
    n_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        master.add(vectors)
    finally:
        faiss.omp_set_num_threads(n_threads)


def selector(allowed: Mask) -> Any:
    """The rows that a search may return."""
    return require_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def inner_products(queries: FloatArray, vectors: FloatArray, rows: RowArray) -> FloatArray:
    """Scores of each query with rows of its own, float32 (q, k), without copying the rows; any number for row -1.

    Args:
        queries: float32 (q, d), contiguous.
        vectors: float32 (n, d), contiguous.
        rows: int64 (q, k), contiguous, below n.
    """
    faiss = require_faiss()
    scores = np.zeros(rows.shape, dtype=np.float32)
    arrays = [faiss.swig_ptr(array) for array in (scores, queries, vectors, rows)]
    faiss.fvec_inner_products_by_idx(*arrays, vectors.shape[1], *rows.shape)
    return scores


def on_gpu(master: Any, device: str, multi_gpu: MultiGpu) -> Any:
    """A copy of the index on CUDA devices, or None where there are none, none is asked for or none can hold it."""
    faiss = require_faiss()
    if TYPES[type(master).__name__] not in ON_GPU or not device.startswith("cuda"):
        return None
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    if multi_gpu == "none":
        ordinal = int(device.partition(":")[2] or 0)
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), ordinal, master)
    options = faiss.GpuMultipleClonerOptions()
    options.shard = multi_gpu == "shard"
    return faiss.index_cpu_to_all_gpus(master, co=options)


def write_master(master: Any, path: Path) -> None:
    """Write the CPU form of an index."""
    require_faiss().write_index(master, str(path))


def read_master(path: Path) -> Any:
    """Read an index.

    Raises:
        ValueError: The file is missing, unreadable, or of a type that is not made here.
        RuntimeError: FAISS cannot be imported.
    """
    faiss = require_faiss()
    try:
        with _reader_limits(faiss, path.stat().st_size):
            master = faiss.read_index(str(path))
    except (OSError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({error}); build the index again") from error
    if type(master).__name__ not in TYPES:
        raise ValueError(f"{path} holds a {type(master).__name__}, which is no index of ours; build the index again")
    return master


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


@contextmanager
def _reader_limits(faiss: Any, n_bytes: int) -> Iterator[None]:
    """No array or loop of the file may claim to be longer than the file, where this FAISS can check that."""
    limits = {"deserialization_vector_byte_limit": max(n_bytes, TABLE_BYTES), "deserialization_loop_limit": n_bytes}
    limits = {name: limit for name, limit in limits.items() if hasattr(faiss, f"set_{name}")}
    before = {name: getattr(faiss, f"get_{name}")() for name in limits}
    try:
        for name, limit in limits.items():
            getattr(faiss, f"set_{name}")(limit)
        yield
    finally:
        for name, old in before.items():
            getattr(faiss, f"set_{name}")(old)
