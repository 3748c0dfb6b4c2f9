"""Item-to-item neighbours from words and characters, so that every language works and no encoder need know a word.

Owns tokenising and TF-IDF over distinct texts. Items that share a text share their neighbours.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfTransformer
from tqdm import tqdm

from indexing.sparse import keep_largest, replace_rows

# Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces between words, and Korean glues particles
# to them: one- and two-character grams stand for words there.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff"
    r"\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# Accents, points and vowel signs, which \w leaves out: without them words of Hindi or Tamil would fall to pieces.
MARKS = r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
TOKEN = re.compile(rf"[{UNSPACED}]+|(?:[^\W{UNSPACED}]|[{MARKS}])+")
UNSPACED_RUN = re.compile(rf"[{UNSPACED}]")
WORD = rf"(?:[\p{{L}}\p{{N}}_--[{UNSPACED}]]|[{MARKS}])+"  # the second half of `TOKEN` in the words of polars
WORN = 0.9  # of the neighbours of a text: with fewer left than that they are looked for anew
CELLS_PER_BLOCK = 20_000_000  # bounds memory: about 0.25 GB of similarities at once
ROWS_PER_BLOCK = 10_000  # bounds memory: so many lists are changed at once

Entries = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]  # rows, columns, values


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalConfig:
    """How texts are compared.

    Attributes:
        n_neighbours: texts kept per text.
        items_per_text: where many items share one text, this many of them stand for it, the most popular first.
        max_share: a token in more than this share of the texts is ignored.
        n_lookalikes: other texts, at most, whose company says where a text belongs; as many again by vectors where
            nobody took it.
    """

    n_neighbours: int = 100
    items_per_text: int = 3
    max_share: float = 0.2
    n_lookalikes: int = 30

    def __post_init__(self) -> None:
        if min(self.n_neighbours, self.items_per_text, self.n_lookalikes) < 1:
            raise ValueError(f"lexical: n_neighbours, items_per_text and n_lookalikes must be at least 1, got {self}")
        if not 0.0 < self.max_share <= 1.0:
            raise ValueError(f"lexical: max_share={self.max_share} must lie in (0, 1]")


def tokenize(text: str) -> list[str]:
    """Lower-cased words; of unspaced scripts single characters and pairs of neighbouring characters."""
    tokens: list[str] = []
    for run in TOKEN.findall(text.lower()):
        if UNSPACED_RUN.match(run):
            tokens.extend(run)
            tokens.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            tokens.append(run)
    return tokens


def tokenize_all(texts: Sequence[str]) -> list[list[str]]:
    """`tokenize` of every text, several times as fast where words are spaced."""
    tokens: list[list[str]] = _token_lists(texts).to_list()
    return tokens


def count_tokens(texts: Sequence[str]) -> tuple[sp.csr_matrix, pl.Series]:
    """How often each token stands in each text, float32 CSR (n_texts, n_tokens), and the tokens, ascending."""
    numbered = pl.DataFrame({"text": pl.int_range(len(texts), eager=True), "token": _token_lists(texts)})
    said = numbered.explode("token").drop_nulls()
    tokens = said["token"].unique().sort()
    places = (said["text"].to_numpy(), said["token"].cast(pl.Enum(tokens)).to_physical().to_numpy())
    counts = sp.csr_matrix((np.ones(said.height, dtype=np.float32), places), shape=(len(texts), len(tokens)))
    counts.sum_duplicates()
    return counts, tokens


def _token_lists(texts: Sequence[str]) -> pl.Series:
    """Lists of tokens, in their order."""
    column = pl.Series(texts, dtype=pl.String)
    tokens = column.str.to_lowercase().str.extract_all(WORD)
    unspaced = column.str.contains(f"[{UNSPACED}]").arg_true()
    if unspaced.is_empty():
        return tokens
    lists = tokens.to_list()
    for row in unspaced:
        lists[row] = tokenize(texts[row])
    return pl.Series(lists, dtype=pl.List(pl.String))


def text_neighbours(texts: Sequence[str], config: LexicalConfig, *, progress: bool = False) -> sp.csr_matrix:
    """Cosine of TF-IDF vectors between distinct texts.

    Args:
        texts: distinct texts, n_texts.
        config: neighbours kept and the token filter.
        progress: whether stderr shows a bar.

    Returns:
        float32 CSR (n_texts, n_texts), at most `n_neighbours` + 1 entries a row: a text is its own best neighbour.
        All zero where no text has a usable token.
    """
    vectors = _vectors(texts, config)
    transposed, n_texts = vectors.T.tocsr(), len(texts)
    blocks = [sp.csr_matrix((0, n_texts), dtype=np.float32)]
    for rows in tqdm(_blocks(np.arange(n_texts), n_texts), desc="compare texts", disable=not progress, mininterval=1.0):
        blocks.append(keep_largest((vectors[rows] @ transposed).tocsr(), config.n_neighbours + 1))
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def renewed_neighbours(
    old: sp.csr_matrix, places: npt.NDArray[np.int64], texts: Sequence[str], config: LexicalConfig
) -> sp.csr_matrix:
    """Neighbours of texts most of which were compared before: only new texts are compared with all others.

    Pairs of texts that were there keep their cosine, although every text that comes or goes changes the weights of
    tokens a little. A row that lost more than a tenth of its neighbours is compared anew, so that neither holes nor
    old weights pile up.

    Args:
        old: what `text_neighbours` or this function returned for the former texts.
        places: int64 (n_texts,), the row that each text had, -1 for a new one.
        texts: distinct texts, n_texts.
        config: as for `old`.

    Returns:
        See `text_neighbours`.
    """
    full, n_texts, new = config.n_neighbours + 1, len(texts), places < 0
    vectors = _vectors(texts, config)
    transposed = vectors.T.tocsr()
    left, border = np.zeros(n_texts, dtype=np.int64), np.zeros(n_texts, dtype=np.float32)
    for block, kept in _carried(old, places):
        left[block], border[block] = np.diff(kept.indptr), _lowest(kept, full)
    had = np.where(new, 0, np.diff(old.indptr)[np.maximum(places, 0)])
    anew = new | ((left < had) & (left < WORN * full))
    border[anew] = np.inf
    compared = np.flatnonzero(anew)
    lists, seen = [sp.csr_matrix((0, n_texts), dtype=np.float32)], []
    for rows in _blocks(compared, n_texts):
        similar = sp.csr_matrix(vectors[rows] @ transposed)
        seen.append(_seen_from_others(similar, rows, new, border))
        lists.append(keep_largest(similar, full))
    found, gained = sp.vstack(lists, format="csr"), _summed(seen, (n_texts, n_texts))
    renewed = [sp.csr_matrix((0, n_texts), dtype=np.float32)]
    for block, kept in _carried(old, places):  # once more: holding all of them would double the memory
        best = keep_largest(sp.csr_matrix(kept + gained[block]), full)
        first, last = np.searchsorted(compared, (block.start, block.stop))
        renewed.append(replace_rows(best, compared[first:last] - block.start, found[first:last]))
    return sp.csr_matrix(sp.vstack(renewed, format="csr"))


def _vectors(texts: Sequence[str], config: LexicalConfig) -> sp.csr_matrix:
    """Unit TF-IDF rows, float32 CSR (n_texts, n_tokens); of no tokens where no text has a usable one."""
    max_share = config.max_share if len(texts) >= 50 else 1.0  # a share says nothing about a handful of texts
    counts, _ = count_tokens(texts)
    usable = np.bincount(counts.indices, minlength=counts.shape[1]) <= max_share * len(texts)
    if not usable.any():
        return sp.csr_matrix((len(texts), 0), dtype=np.float32)
    return sp.csr_matrix(TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, usable]))


def _blocks(rows: npt.NDArray[np.int64], n_texts: int) -> list[npt.NDArray[np.int64]]:
    """Rows in groups whose similarities to all texts fit into `CELLS_PER_BLOCK`."""
    per_block = max(1, CELLS_PER_BLOCK // max(n_texts, 1))
    return np.split(rows, range(per_block, len(rows), per_block)) if len(rows) else []


def _carried(old: sp.csr_matrix, places: npt.NDArray[np.int64]) -> Iterator[tuple[slice, sp.csr_matrix]]:
    """The old matrix in new numbers, without the texts that are gone: groups of rows, and what these hold."""
    n_texts, there = len(places), places >= 0
    moved = np.full(old.shape[0], -1, dtype=np.int32)
    moved[places[there]] = np.flatnonzero(there)
    for start in range(0, n_texts, ROWS_PER_BLOCK):
        block = slice(start, min(start + ROWS_PER_BLOCK, n_texts))
        rows = sp.csr_matrix(old[places[block][there[block]]])
        lengths = np.zeros(block.stop - start, dtype=np.int64)
        lengths[there[block]] = np.diff(rows.indptr)
        columns = moved[rows.indices]
        kept = columns >= 0
        ends = np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], np.cumsum(lengths)])]
        carried = sp.csr_matrix((rows.data[kept], columns[kept], ends), shape=(len(lengths), n_texts))
        carried.sort_indices()
        yield block, carried


def _lowest(matrix: sp.csr_matrix, full: int) -> npt.NDArray[np.float32]:
    """What an entry must reach to be among the best of its row: the smallest one of a full row, else 0, (n_rows,)."""
    lowest = np.zeros(matrix.shape[0], dtype=np.float32)
    filled = np.diff(matrix.indptr) > 0
    if filled.any():
        lowest[filled] = np.minimum.reduceat(matrix.data, matrix.indptr[:-1][filled])
    return np.where(np.diff(matrix.indptr) < full, np.float32(0.0), lowest)


def _seen_from_others(
    similar: sp.csr_matrix, rows: npt.NDArray[np.int64], new: npt.NDArray[np.bool_], border: npt.NDArray[np.float32]
) -> Entries:
    """What new texts are to the texts that keep their neighbours, where it is good enough for those."""
    good = np.flatnonzero(similar.data >= border[similar.indices])
    own = rows[np.searchsorted(similar.indptr, good, side="right") - 1]
    good, own = good[new[own]], own[new[own]]
    return similar.indices[good], own.astype(np.int32), similar.data[good]


def _summed(parts: list[Entries], shape: tuple[int, int]) -> sp.csr_matrix:
    """A matrix of these entries."""
    if not parts:
        return sp.csr_matrix(shape, dtype=np.float32)
    row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sp.coo_matrix((value, (row, column)), shape=shape).tocsr()


def lexical_neighbours(
    neighbours: sp.csr_matrix,
    text_rows: npt.NDArray[np.int64],
    popularity: npt.NDArray[np.float32],
    config: LexicalConfig,
) -> sp.csr_matrix:
    """From neighbours of texts to neighbours of items.

    Args:
        neighbours: what `text_neighbours` returned.
        text_rows: int64 (n_items,), the text of each item.
        popularity: float32 (n_items,), decides which items stand for a text that many share.
        config: items per text.

    Returns:
        float32 CSR (n_texts, n_items): a text's nearest items.
    """
    n_items = len(text_rows)
    if neighbours.shape[0] == n_items and np.array_equal(text_rows, np.arange(n_items)):
        return neighbours  # every item has a text of its own
    order = np.lexsort((np.arange(n_items), -popularity, text_rows))
    starts = np.searchsorted(text_rows[order], np.arange(neighbours.shape[0]))
    place = np.arange(n_items) - starts[text_rows[order]]
    chosen = order[place < config.items_per_text]
    ones = np.ones(len(chosen), dtype=np.float32)
    stand_for = sp.csr_matrix((ones, (text_rows[chosen], chosen)), shape=(neighbours.shape[0], n_items))
    result = sp.csr_matrix(neighbours @ stand_for)
    result.sort_indices()
    return result
