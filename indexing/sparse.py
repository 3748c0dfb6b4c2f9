"""Rows of sparse score matrices: keep the best, find single entries, write to disk. Nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

DENSE_CELLS = 1_000_000  # written out at once: what fits into a processor's cache
ENTRIES_PER_BLOCK = 5_000_000  # bounds what `keep_largest` holds besides its result
ROWS_AT_ONCE = 10_000  # bounds what `_borders` holds
SIDE_BY_SIDE = 4  # rows of up to so many times k entries are looked at together, longer ones one by one


def place_in_runs(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... within each run of equal values, int64 (n,)."""
    places = np.arange(len(values))
    goes_on = np.zeros(len(values), dtype=np.bool_)
    np.equal(values[1:], values[:-1], out=goes_on[1:])
    return places - np.maximum.accumulate(np.where(goes_on, 0, places))


def distinct(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The distinct values, ascending: `np.unique`, which hashes first and takes several times as long."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def rows_of(matrix: sp.csr_matrix) -> npt.NDArray[np.int64]:
    """The row of each stored entry, int64 (nnz,)."""
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))


def largest(matrix: sp.csr_matrix, k: int, among: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int64]:
    """Positions of the `k` largest entries of each row: by row, best first, equal ones by column, int64.

    Args:
        matrix: columns in any order in each row.
        k: entries of a row at most.
        among: bool (nnz,), the entries that may be chosen; all by default.
    """
    left = np.arange(matrix.nnz) if among is None else np.flatnonzero(among)
    values, indptr = matrix.data[left], np.searchsorted(left, matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(indptr))
    good = np.flatnonzero(values >= _borders(values, indptr, k)[rows])
    rows, best = rows[good], left[good]
    order = np.lexsort((matrix.indices[best], -values[good], rows))
    return np.asarray(best[order[place_in_runs(rows[order]) < k]], dtype=np.int64)


def _borders(values: npt.NDArray[np.float32], indptr: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.float32]:
    """The `k`-th largest value of each row, float32 (n_rows,); minus infinity where there are no more than `k`."""
    lengths = np.diff(indptr)
    border = np.full(len(lengths), -np.inf, dtype=np.float32)
    few = np.flatnonzero((lengths > k) & (lengths <= SIDE_BY_SIDE * k))
    for rows in np.split(few, range(ROWS_AT_ONCE, len(few), ROWS_AT_ONCE)):
        columns = np.arange(lengths[rows].max(initial=k))
        places = np.minimum(indptr[rows, None] + columns, len(values) - 1)
        filled = np.where(columns < lengths[rows, None], values[places], -np.inf)
        border[rows] = -np.partition(-filled, k - 1, axis=1)[:, k - 1]
    for row in np.flatnonzero(lengths > SIDE_BY_SIDE * k):
        scores = values[indptr[row] : indptr[row + 1]]
        border[row] = np.partition(scores, len(scores) - k)[len(scores) - k]
    return border


def keep_largest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The `k` largest entries of each row, columns ascending, float32; `matrix` may get its columns sorted in place."""
    if matrix.nnz <= ENTRIES_PER_BLOCK:
        return _keep_largest(matrix, k)
    per_block = max(1, ENTRIES_PER_BLOCK * matrix.shape[0] // matrix.nnz)
    starts = range(0, matrix.shape[0], per_block)
    parts = [_keep_largest(sp.csr_matrix(matrix[start : start + per_block]), k) for start in starts]
    return sp.csr_matrix(sp.vstack(parts, format="csr"))


def _keep_largest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """Like `largest`, but without putting the entries of a row in order."""
    matrix.sort_indices()
    border = _borders(matrix.data, matrix.indptr, k)[rows_of(matrix)]
    kept = matrix.data >= border
    tied = np.flatnonzero(matrix.data == border)
    owner = rows_of(matrix)[tied]
    above = np.bincount(rows_of(matrix)[matrix.data > border], minlength=matrix.shape[0])
    kept[tied[place_in_runs(owner) >= k - above[owner]]] = False
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[kept].astype(np.float32), matrix.indices[kept], indptr), shape=matrix.shape)


def replace_rows(matrix: sp.csr_matrix, rows: npt.NDArray[np.int64], others: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix with distinct `rows` taken from the rows of `others`, in that order."""
    lengths = np.diff(matrix.indptr)
    stays = np.ones(matrix.shape[0], dtype=np.bool_)
    stays[rows] = False
    old = np.repeat(stays, lengths)
    lengths[rows] = np.diff(others.indptr)
    new = ~np.repeat(stays, lengths)
    others = others[np.argsort(rows)]
    made = [np.empty(len(new), dtype=part.dtype) for part in (matrix.data, matrix.indices)]
    for to, stored, given in zip(made, (matrix.data, matrix.indices), (others.data, others.indices), strict=True):
        to[~new], to[new] = stored[old], given
    return sp.csr_matrix((*made, np.concatenate([[0], np.cumsum(lengths)])), shape=matrix.shape)


def entries_at(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """The entries of (row, column) pairs, float32 (n_pairs,), zero where none is stored.

    Args:
        matrix: columns in any order in each row.
        rows: int64 (n_pairs,), ascending.
        columns: int64 (n_pairs,).
    """
    found = np.zeros(len(rows), dtype=np.float32)
    for dense, stored, entries, pairs, asked in _written_out(matrix, rows, columns, np.float32):
        dense[entries] = matrix.data[stored]
        found[pairs] = dense[asked]
        dense[entries] = 0.0
    return found


def are_among(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which stored entries lie at one of the (row, column) pairs, bool (nnz,); see `entries_at`."""
    found = np.zeros(matrix.nnz, dtype=np.bool_)
    for dense, stored, entries, _, asked in _written_out(matrix, rows, columns, np.bool_):
        dense[asked] = True
        found[stored] = dense[entries]
        dense[asked] = False
    return found


def _written_out(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], dtype: type[np.generic]
) -> Iterator[tuple[npt.NDArray[Any], slice, npt.NDArray[np.int64], slice, npt.NDArray[np.int64]]]:
    """Groups of rows for which pairs are asked: room for all their cells, and where entries and pairs lie in it.

    The room is the same for every group, since it is as large as the catalogue at least: empty before, to be left so.
    """
    n_rows, n_columns = matrix.shape
    size = max(1, min(n_rows, DENSE_CELLS // max(n_columns, 1)))
    dense = np.zeros(size * n_columns, dtype=dtype)
    for start in range(0, n_rows, size):
        stop = min(start + size, n_rows)
        pairs = slice(*np.searchsorted(rows, (start, stop)))
        if pairs.start < pairs.stop:
            begins = np.arange(stop - start) * n_columns
            stored = slice(*matrix.indptr[[start, stop]])
            entries = np.repeat(begins, np.diff(matrix.indptr[start : stop + 1])) + matrix.indices[stored]
            yield dense, stored, entries, pairs, (rows[pairs] - start) * n_columns + columns[pairs]


def positions_of(keys: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each wanted key lies among the ascending keys, int64 (n,); -1 where it does not."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.asarray(np.where(keys[found] == wanted, found, -1), dtype=np.int64)


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
