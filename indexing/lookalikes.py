"""Who is asked about an item that nobody took yet: texts like its own of which something was taken.

Owns which texts an item listens to, by words and by vectors. What goes with them is `covisitation.py`.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from indexing.index import FloatArray, Mask, VectorIndex
from indexing.lexical import ROWS_PER_BLOCK, LexicalConfig, lexical_neighbours
from indexing.sparse import keep_largest, rows_of

MOST_SEARCHED = 10_000  # new texts looked for by vector, the last of the catalogue: bounds the time of a search each


def untaken_texts(text_rows: npt.NDArray[np.int64], popularity: npt.NDArray[np.float32], n_texts: int) -> Mask:
    """Texts of which nobody took any item, bool (n_texts,)."""
    return np.bincount(text_rows, weights=popularity, minlength=n_texts) <= 0.0


def lookalikes(
    neighbours: sp.csr_matrix,
    near: sp.csr_matrix,
    text_rows: npt.NDArray[np.int64],
    popularity: npt.NDArray[np.float32],
    config: LexicalConfig,
) -> sp.csr_matrix:
    """From texts that are taken to items with other texts like them: who is asked about an item that nobody took yet.

    An item's text listens to the nearest other texts of which something was taken, as much as the squares of their
    cosines, and to all of them together as much as any other text does. Where it has neighbours by vectors too, both
    kinds count half.

    Args:
        neighbours: what `indexing.lexical.text_neighbours` returned.
        near: what `near_taken` returned.
        text_rows: int64 (n_items,), the text of each item.
        popularity: float32 (n_items,), 0 for an item that nobody took; else as for `lexical_neighbours`.
        config: how many texts are listened to; items per text.

    Returns:
        float32 CSR (n_texts, n_items): the items that listen to a text, and how much.
    """
    taken = ~untaken_texts(text_rows, popularity, neighbours.shape[0])
    starts = range(0, neighbours.shape[0], ROWS_PER_BLOCK)
    blocks = [sp.csr_matrix((0, neighbours.shape[1]), dtype=np.float32)]
    blocks += [_heard(neighbours, start, taken, config.n_lookalikes) for start in starts]
    by_words = _shares(sp.csr_matrix(sp.vstack(blocks, format="csr")))
    heard = _shares(sp.csr_matrix(by_words + _shares(near))) if near.nnz else by_words
    return lexical_neighbours(sp.csr_matrix(heard.T), text_rows, popularity, config)


def near_taken(
    index: VectorIndex,
    vectors: FloatArray,
    searchable: Mask,
    text_rows: npt.NDArray[np.int64],
    popularity: npt.NDArray[np.float32],
    n_texts: int,
    k: int,
) -> sp.csr_matrix:
    """For texts that nobody took: the texts of the nearest items that somebody took.

    Args:
        index: over the item vectors.
        vectors: float32 (n_items, dim), unit length.
        searchable: bool (n_items,), items with a text, whose vectors mean something.
        text_rows: int64 (n_items,), the text of each item.
        popularity: float32 (n_items,), 0 for an item that nobody took.
        n_texts: number of texts.
        k: items looked for, for each text.

    Returns:
        float32 CSR (n_texts, n_texts), squared cosines, summed over the items of a text; rows of other texts are empty.
    """
    untaken, first = untaken_texts(text_rows, popularity, n_texts), np.full(n_texts, -1, dtype=np.int64)
    first[text_rows[::-1]] = np.arange(len(text_rows))[::-1]  # one item stands for its text
    asked = np.sort(first[untaken & (first >= 0)])
    asked = asked[searchable[asked]][-MOST_SEARCHED:]
    allowed = searchable & (popularity > 0.0)
    if not (len(asked) and allowed.any()):
        return sp.csr_matrix((n_texts, n_texts), dtype=np.float32)
    rows, cosines = index.search(vectors[asked], k, allowed=allowed)
    places, columns = np.nonzero((rows >= 0) & (cosines > 0.0))
    texts = (text_rows[asked[places]], text_rows[rows[places, columns]])
    return sp.csr_matrix((cosines[places, columns] ** 2, texts), shape=(n_texts, n_texts))


def _heard(neighbours: sp.csr_matrix, start: int, taken: Mask, k: int) -> sp.csr_matrix:
    """Squared cosines of some texts, from `start` on, to the `k` nearest other texts of which something was taken."""
    rows = sp.csr_matrix(neighbours[start : start + ROWS_PER_BLOCK])
    heard = taken[rows.indices] & (rows.indices != start + rows_of(rows))
    rows.data = np.where(heard, rows.data**2, np.float32(0.0))
    rows.eliminate_zeros()
    return keep_largest(rows, k)


def _shares(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same with rows that add up to 1; empty rows stay empty."""
    totals = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), np.finfo(np.float32).tiny)
    return sp.csr_matrix((matrix.data / totals[rows_of(matrix)], matrix.indices, matrix.indptr), shape=matrix.shape)
