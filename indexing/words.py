"""Texts as bags of weighted words, for the item tower: words that no encoder knows, in any language.

Owns the vocabulary and the weights (TF-IDF). How texts fall into words is `indexing/lexical.py`'s business, what a word
means to the tower is learnt in `indexing/tower_lesson.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer

from indexing.lexical import count_tokens, tokenize_all
from indexing.sparse import rows_of


@dataclass(frozen=True, slots=True)
class Words:
    """A vocabulary with the inverse document frequency of each word.

    Attributes:
        vocabulary: word -> row, 0..n_words-1.
        idf: float32 (n_words,).
    """

    vocabulary: dict[str, int]
    idf: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, texts: Sequence[str], *, max_words: int) -> Self:
        """The most frequent words of distinct texts that stand in at least two of them; perhaps none."""
        vectorizer = TfidfVectorizer(analyzer=_itself, min_df=min(2, len(texts)), max_features=max_words or None)
        try:
            vectorizer.fit(tokenize_all(texts) if max_words else [])
        except ValueError:  # scikit-learn's only signal for an empty vocabulary
            return cls({}, np.zeros(0, dtype=np.float32))
        vocabulary = {word: int(row) for word, row in vectorizer.vocabulary_.items()}
        return cls(dict(sorted(vocabulary.items(), key=lambda pair: pair[1])), vectorizer.idf_.astype(np.float32))

    def __len__(self) -> int:
        """Number of words."""
        return len(self.vocabulary)

    def transform(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Unit TF-IDF rows with logarithmic term frequency, float32 CSR (n_texts, n_words); zero where no word is
        known.

        Source: Salton and Buckley 1988, "Term-weighting approaches in automatic text retrieval".
        """
        if not (self.vocabulary and len(texts)):
            return sp.csr_matrix((len(texts), len(self)), dtype=np.float32)
        counts, tokens = count_tokens(texts)
        places = np.fromiter((self.vocabulary.get(token, -1) for token in tokens), np.int64, len(tokens))[
            counts.indices
        ]
        known = places >= 0
        entries = (counts.data[known], (rows_of(counts)[known], places[known]))
        bags = sp.csr_matrix(entries, shape=(len(texts), len(self)))
        bags.sort_indices()
        weights = TfidfTransformer(sublinear_tf=True)
        weights.idf_ = self.idf
        return sp.csr_matrix(weights.transform(bags))

    def save(self, folder: Path) -> None:
        """Write `words.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"words": list(self.vocabulary), "idf": self.idf.astype(float).tolist()}
        (folder / "words.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        content = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return cls({word: row for row, word in enumerate(content["words"])}, np.array(content["idf"], dtype=np.float32))


def _itself(tokens: list[str]) -> list[str]:
    """What `tokenize_all` returned needs no further analysis."""
    return tokens
