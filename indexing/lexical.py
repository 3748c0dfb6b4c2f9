"""Item-to-item neighbours from words and characters, so that every language works and no encoder need know a word.

Owns tokenising and TF-IDF over distinct texts. Items that share a text share their neighbours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from indexing.sparse import keep_largest

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
CELLS_PER_BLOCK = 20_000_000  # bounds memory: about 0.25 GB of similarities at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalConfig:
    """How texts are compared.

    Attributes:
        n_neighbours: texts kept per text.
        items_per_text: where many items share one text, this many of them stand for it, the most popular first.
        max_share: a token in more than this share of the texts is ignored.
    """

    n_neighbours: int = 100
    items_per_text: int = 3
    max_share: float = 0.2

    def __post_init__(self) -> None:
        if self.n_neighbours < 1 or self.items_per_text < 1:
            raise ValueError(f"lexical: n_neighbours and items_per_text must be at least 1, got {self}")
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


def text_neighbours(texts: Sequence[str], config: LexicalConfig) -> sp.csr_matrix:
    """Cosine of TF-IDF vectors between distinct texts.

    Args:
        texts: distinct texts, n_texts.
        config: neighbours kept and the token filter.

    Returns:
        float32 CSR (n_texts, n_texts), at most `n_neighbours` + 1 entries a row: a text is its own best neighbour.
        All zero where no text has a usable token.
    """
    max_share = config.max_share if len(texts) >= 50 else 1.0  # a share says nothing about a handful of texts
    vectorizer = TfidfVectorizer(analyzer=tokenize, max_df=max_share, sublinear_tf=True, dtype=np.float32)
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's only signal for an empty vocabulary
        return sp.csr_matrix((len(texts), len(texts)), dtype=np.float32)
    transposed = vectors.T.tocsr()
    per_block = max(1, CELLS_PER_BLOCK // len(texts))
    blocks = [
        keep_largest((vectors[start : start + per_block] @ transposed).tocsr(), config.n_neighbours + 1)
        for start in range(0, len(texts), per_block)
    ]
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


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
    order = np.lexsort((np.arange(n_items), -popularity, text_rows))
    starts = np.searchsorted(text_rows[order], np.arange(neighbours.shape[0]))
    place = np.arange(n_items) - starts[text_rows[order]]
    chosen = order[place < config.items_per_text]
    ones = np.ones(len(chosen), dtype=np.float32)
    stand_for = sp.csr_matrix((ones, (text_rows[chosen], chosen)), shape=(neighbours.shape[0], n_items))
    result = sp.csr_matrix(neighbours @ stand_for)
    result.sort_indices()
    return result
