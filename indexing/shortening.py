"""Fewer dimensions for a first search: one projection for queries and another for vectors, learnt from both.

Owns the projections. What is searched in them, and that the full vectors decide in the end, is `rescored.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexing.index import FloatArray

FLOOR = 1e-6  # least share of the largest variance that a direction counts as having


@dataclass(frozen=True, slots=True)
class Shortening:
    """Two projections between which inner products stay as near to the full ones as so few dimensions allow.

    A prefix of Matryoshka vectors (Kusupati et al. 2022) needs a training for it and serves every query alike. These
    are made after any training, and for the queries that will come: user vectors fill a small part of the space.

    Attributes:
        queries: float32 (d, dim - 1).
        vectors: float32 (d, dim - 1), by which no vector learnt from becomes longer than 1.
    """

    queries: FloatArray
    vectors: FloatArray

    @classmethod
    def learn(cls, queries: FloatArray, vectors: FloatArray, dim: int) -> Self:
        """The projections of the least squared error over all pairs.

        The error of A and B is the squared Frobenius norm of Q^(1/2) (I - A B') V^(1/2), Q and V being the second
        moments, so a truncated singular value decomposition of Q^(1/2) V^(1/2) gives the best (Source: Eckart and Young
        1936, "The approximation of one matrix by another of lower rank").

        Args:
            queries: float32 (q, d), a sample.
            vectors: float32 (n, d).
            dim: 2 or more, less than d; one of them goes to `of_vectors`' remainder.
        """
        (to_queries, from_queries), (to_vectors, from_vectors) = _roots(queries), _roots(vectors)
        left, strengths, right = np.linalg.svd(to_queries @ to_vectors)
        worth = np.sqrt(strengths[: dim - 1])
        of_vectors = from_vectors @ right[: dim - 1].T * worth
        longest = float(np.linalg.norm(vectors @ of_vectors.astype(np.float32), axis=1).max())
        return cls(
            _as_float32(from_queries @ left[:, : dim - 1] * worth), _as_float32(of_vectors / max(longest, FLOOR))
        )

    @property
    def dim(self) -> int:
        """Dimensions that are searched."""
        return int(self.vectors.shape[1]) + 1

    def of_queries(self, queries: FloatArray) -> FloatArray:
        """Short queries, float32 (q, dim); the last axis where nothing is left of one."""
        short = np.zeros((len(queries), self.dim), dtype=np.float32)
        short[:, :-1] = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ self.queries
        short[~short.any(axis=1), -1] = 1.0
        return short

    def of_vectors(self, vectors: FloatArray) -> FloatArray:
        """Short unit vectors, float32 (n, dim).

        What they lack to unit length lies in the last dimension, of which queries have none, so that inner products
        keep their order in an index of unit vectors (Source: Bachrach et al. 2014, "Speeding up the Xbox recommender
        system using a Euclidean transformation for inner-product spaces").
        """
        short = np.empty((len(vectors), self.dim), dtype=np.float32)
        short[:, :-1] = vectors @ self.vectors
        short[:, :-1] /= np.maximum(1.0, np.linalg.norm(short[:, :-1], axis=1, keepdims=True))
        short[:, -1] = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("nd,nd->n", short[:, :-1], short[:, :-1])))
        return short


def _roots(rows: FloatArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The square root of the second moment of rows (n, d), and its inverse, each (d, d)."""
    values, directions = np.linalg.eigh((rows.T @ rows).astype(np.float64) / len(rows))
    spreads = np.sqrt(np.maximum(values, FLOOR * values[-1]))
    return (directions * spreads) @ directions.T, (directions / spreads) @ directions.T


def _as_float32(matrix: NDArray[np.float64]) -> FloatArray:
    return np.ascontiguousarray(matrix, dtype=np.float32)
