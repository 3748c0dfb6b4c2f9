"""Baselines that learn or read: EASE, TF-IDF content neighbours, and iALS through `implicit`.

They keep the rules of `recsys/baselines.py`: known before `as_of`, available items alone, ties by item, and where a
user's scores end, popularity below 0.
"""

import warnings
from typing import Any

import numpy as np
import polars as pl
from scipy import linalg, sparse

from recsys.baselines import Baseline, FloatArray, ItemKNN, Log, RowArray, below_zero, positive
from recsys.errors import InvalidConfig
from recsys.text import item_texts


class CatalogueTooLarge(InvalidConfig):
    """A method whose memory grows with the square of the catalogue is asked for too much."""


class Ease(Baseline):
    """Score: the user's binary row times B of the linear model X = XB with zero diagonal, exact and dense.

    With P = (X'X + regularization * I)^-1, B[i, j] = -P[i, j] / P[j, j]. Items of score 0 or less follow by popularity.
    Source: Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8.

    Args:
        regularization: added to the diagonal of the co-occurrence counts, above 0.
        max_items: most items with interactions; memory is 16 bytes times its square.

    Raises:
        InvalidConfig: `regularization` is not above 0; `CatalogueTooLarge` at fit.
    """

    def __init__(self, regularization: float = 300.0, max_items: int = 15_000) -> None:
        self._regularization = positive("regularization", regularization)
        self._max_items = max_items

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        self._taken = np.flatnonzero(popularity)
        if len(self._taken) > self._max_items:
            raise CatalogueTooLarge(
                f"{len(self._taken):,} items have interactions and EASE inverts a matrix of their square; the limit "
                f"is max_items={self._max_items:,}"
            )
        self._n_items = len(popularity)
        binary = self._seen[:, self._taken].astype(np.float32)
        gram = (binary.T @ binary).toarray()
        gram[np.diag_indices_from(gram)] += self._regularization
        inverse = linalg.inv(gram, overwrite_a=True) if gram.size else gram
        weights = inverse / -np.diagonal(inverse)
        np.fill_diagonal(weights, 0)
        self._weights = weights
        return below_zero(popularity)

    def _own(self, rows: RowArray) -> Any:
        taken = self._seen[rows][:, self._taken].astype(np.float32)  # float64 would copy all weights
        scores = np.maximum(taken @ self._weights, 0).astype(np.float64)
        among = sparse.coo_array(scores)
        return sparse.csr_array((among.data, (among.row, self._taken[among.col])), shape=(len(rows), self._n_items))


class TfIdf(Baseline):
    """Score: the cosine of an item's TF-IDF vector and the sum of those of the user's items.

    Words as in `indexing/lexical.py`, so that every language works. Items without a common word follow by popularity.
    Source: Lops, de Gemmis and Semeraro 2011, "Content-based recommender systems", section 3.3.1.2.
    """

    def fit(self, interactions: pl.DataFrame, items: pl.DataFrame, *, as_of: Any) -> "TfIdf":
        """Read the texts, then learn as the others do."""
        self._texts = item_texts(items.sort("item_id"))
        return super().fit(interactions, items, as_of=as_of)

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        self._vectors = tfidf_vectors(self._texts)
        return below_zero(popularity)

    def _own(self, rows: RowArray) -> Any:
        profiles = self._seen[rows] @ self._vectors
        norms = np.sqrt(np.asarray(profiles.multiply(profiles).sum(axis=1)).ravel())
        scale = sparse.diags_array(1 / np.maximum(norms, 1e-12))
        return (scale @ profiles @ self._vectors.T).tocsr()


class KnnAndTfIdf(TfIdf, ItemKNN):
    """Score: those of item-kNN and of TF-IDF, each as a share of the user's best, added up; no neural network needed.

    Items that neither knows follow by popularity.

    Args:
        n_neighbours: as for `ItemKNN`.

    Raises:
        InvalidConfig: `n_neighbours` is below 1.
    """

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        ItemKNN._learn(self, log, popularity)
        return TfIdf._learn(self, log, popularity)

    def _own(self, rows: RowArray) -> Any:
        return _shares_of_best(ItemKNN._own(self, rows)) + _shares_of_best(TfIdf._own(self, rows))


def _shares_of_best(scores: Any) -> Any:
    """Each row divided by its largest entry."""
    best = np.maximum(scores.max(axis=1).toarray().ravel(), 1e-12)
    return sparse.diags_array(1 / best) @ scores


class Ials(Baseline):
    """Score: the product of user and item factors of implicit-feedback matrix factorisation.

    Needs the package `implicit` (extra `ials`). Items of score 0 or less follow by popularity.
    Source: Hu, Koren and Volinsky 2008; Rendle et al. 2021, "Revisiting the performance of iALS on item recommendation
    benchmarks", who found that it needs many factors and a tuned regularisation.

    Args:
        factors: length of the vectors.
        regularization: of both.
        alpha: weight of an observed pair.
        iterations: sweeps.
        seed: of the start.

    Raises:
        InvalidConfig: `implicit` is not installed (at fit).
    """

    def __init__(
        self,
        factors: int = 64,
        regularization: float = 0.01,
        alpha: float = 10.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        self._settings = {
            "factors": factors,
            "regularization": regularization,
            "alpha": alpha,
            "iterations": iterations,
            "random_state": seed,
        }

    def _learn(self, log: Log, popularity: FloatArray) -> FloatArray:
        try:
            from implicit.cpu.als import AlternatingLeastSquares  # type: ignore[import-untyped]
        except ImportError as error:
            raise InvalidConfig(
                "the system ials needs the package implicit, which is not installed: "
                'pip install "recsys-twostage[ials]"'
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about threads of BLAS, which is a matter of speed alone
            model = AlternatingLeastSquares(**self._settings)
            model.fit(sparse.csr_matrix(self._seen.astype(np.float32)), show_progress=False)
        self._users, self._items = model.user_factors, model.item_factors
        return below_zero(popularity)

    def _own(self, rows: RowArray) -> Any:
        return sparse.csr_array(np.maximum(self._users[rows] @ self._items.T, 0).astype(np.float64))


def tfidf_vectors(texts: list[str]) -> Any:
    """Unit TF-IDF rows, sparse float64 (n_texts, n_words); zero rows for texts without a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from indexing.lexical import tokenize

    try:
        return sparse.csr_array(TfidfVectorizer(analyzer=tokenize, sublinear_tf=True).fit_transform(texts))
    except ValueError:  # scikit-learn's only signal for an empty vocabulary
        return sparse.csr_array((len(texts), 1))
