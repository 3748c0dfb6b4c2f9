"""Item-to-item weights from behaviour in closed form: EASE, where the catalogue is small enough to invert.

Owns the one linear solve and what is kept of it. What a history's neighbours are worth to a user is decided in
`indexing/sources.py`; pairs in order of time are `indexing/covisitation.py`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.linalg import lapack

from indexing.history import Histories
from indexing.sparse import keep_largest

ROWS_PER_BLOCK = 512  # bounds what is held besides the one dense matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class EaseConfig:
    """How strongly weights are held back, and where the method stops.

    Attributes:
        regularization: added to the diagonal of the co-occurrence counts; the larger, the more popular the neighbours.
        n_neighbours: weights kept per item.
        max_items: of those with interactions, the most often taken ones that take part; where a fit sees more it leaves
            the source out. The solve holds 4 bytes times the square of their number (15,000: 0.9 GB) and takes time
            with its third power (12,000: about half a minute on two cores).
    """

    regularization: float = 300.0
    n_neighbours: int = 200
    max_items: int = 15_000

    def __post_init__(self) -> None:
        if not self.regularization > 0.0:
            raise ValueError(f"ease: regularization={self.regularization} must be above 0")
        if self.n_neighbours < 1 or self.max_items < 0:
            raise ValueError(f"ease: n_neighbours must be at least 1 and max_items 0 or more, got {self}")


def ease(histories: Histories, n_items: int, config: EaseConfig) -> sp.csr_matrix:
    """Weights B of the linear model X = XB with zero diagonal, X being who took what.

    With P = (X'X + regularization * I)^-1 and X binary, B[i, j] = -P[i, j] / P[j, j] for i != j. The solve is exact,
    in float32; what is cut afterwards are all weights of zero or less and, in each row, all but the `n_neighbours`
    largest.
    Source: Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8.

    Args:
        histories: who took what; order and repeats do not matter.
        n_items: rows of the items table.
        config: regularisation, neighbours kept, items that take part.

    Returns:
        float32 CSR (n_items, n_items) with at most `n_neighbours` entries a row, none for items that take no part.
    """
    taken, counts = np.unique(histories.item_rows, return_counts=True)
    taken = np.sort(taken[np.argsort(-counts, kind="stable")[: config.max_items]])
    gram = _gram(histories, taken)
    gram[np.diag_indices_from(gram)] += config.regularization
    weights = _weights(_inverse(gram), config.n_neighbours)
    return _among_all(weights, taken, n_items)


def _gram(histories: Histories, taken: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """How many users took both items of a pair, dense (n_taken, n_taken) in Fortran order for LAPACK."""
    chosen = np.isin(histories.item_rows, taken)
    owner = np.repeat(np.arange(len(histories)), histories.lengths)[chosen]
    columns = np.searchsorted(taken, histories.item_rows[chosen])
    shape = (len(histories), len(taken))
    binary = sp.csr_matrix((np.ones(len(owner), dtype=np.float32), (owner, columns)), shape=shape)
    binary.data[:] = 1.0  # repeats were summed
    return np.asarray((binary.T @ binary).toarray(order="F"), dtype=np.float32)


def _inverse(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Lower triangle of the inverse of a positive definite matrix, in its own memory; the upper one is rubbish."""
    if not len(matrix):
        return matrix
    factor, failed = lapack.spotrf(matrix, lower=1, overwrite_a=1)
    if failed:
        raise ValueError("ease: the co-occurrence matrix cannot be factorised in float32; raise ease.regularization")
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    return np.asarray(inverse, dtype=np.float32)


def _weights(inverse: npt.NDArray[np.float32], n_neighbours: int) -> sp.csr_matrix:
    """The largest positive weights of each row, CSR (n_taken, n_taken)."""
    n, diagonal = len(inverse), np.diagonal(inverse).copy()
    parts = [sp.csr_matrix((0, n), dtype=np.float32)]
    for start in range(0, n, ROWS_PER_BLOCK):
        stop = min(start + ROWS_PER_BLOCK, n)
        rows = np.concatenate([inverse[start:stop, :start], inverse[start:, start:stop].T], axis=1)  # (block, n)
        within = rows[:, start:stop]
        rows[:, start:stop] = np.triu(within) + np.triu(within, 1).T
        rows /= -diagonal
        rows[np.arange(stop - start), np.arange(start, stop)] = 0.0
        parts.append(keep_largest(sp.csr_matrix(np.maximum(rows, 0.0)), n_neighbours))
    return sp.csr_matrix(sp.vstack(parts, format="csr"))


def _among_all(weights: sp.csr_matrix, taken: npt.NDArray[np.int32], n_items: int) -> sp.csr_matrix:
    """The same weights among all items; those that took no part have none."""
    lengths = np.zeros(n_items, dtype=np.int64)
    lengths[taken] = np.diff(weights.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix((weights.data, taken[weights.indices], indptr), shape=(n_items, n_items))
