"""Rows of sparse score matrices: keep the best, find one entry, write to disk. Nothing else."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file


def best_columns(columns: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Positions of the `k` largest scores, best first, equal scores by column: also at the border."""
    if len(scores) > k:
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        positions = np.flatnonzero(scores >= border)
    else:
        positions = np.arange(len(scores))
    order = np.lexsort((columns[positions], -scores[positions]))
    return positions[order[:k]]


def keep_largest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The `k` largest entries of each row, columns ascending."""
    kept, lengths = [], np.zeros(matrix.shape[0], dtype=np.int64)
    for row in range(matrix.shape[0]):
        start, stop = matrix.indptr[row], matrix.indptr[row + 1]
        if stop - start <= k:
            chosen = np.arange(start, stop)
        else:
            chosen = start + best_columns(matrix.indices[start:stop], matrix.data[start:stop], k)
        lengths[row] = len(chosen)
        kept.append(chosen)
    positions = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    result = sp.csr_matrix(
        (matrix.data[positions].astype(np.float32), matrix.indices[positions], indptr), shape=matrix.shape
    )
    result.sort_indices()
    return result


def entries(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """`matrix[rows, columns]`, zero where nothing is stored, float32 (n,). Columns must be sorted in each row."""
    width = matrix.shape[1]
    stored_rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    stored = stored_rows * width + matrix.indices
    wanted = rows.astype(np.int64) * width + columns
    found = np.searchsorted(stored, wanted)
    found_safe = np.minimum(found, max(len(stored) - 1, 0))
    values = np.zeros(len(wanted), dtype=np.float32)
    if len(stored):
        hit = stored[found_safe] == wanted
        values[hit] = matrix.data[found_safe[hit]]
    return values


def save_csr(matrix: sp.csr_matrix, path: Path) -> None:
    """Write a CSR matrix as safetensors."""
    save_file(
        {
            "data": matrix.data.astype(np.float32),
            "indices": matrix.indices.astype(np.int32),
            "indptr": matrix.indptr.astype(np.int64),
            "shape": np.asarray(matrix.shape, dtype=np.int64),
        },
        path,
    )


def load_csr(path: Path) -> sp.csr_matrix:
    """Read what `save_csr` wrote."""
    parts = load_file(path)
    return sp.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=tuple(parts["shape"]))
