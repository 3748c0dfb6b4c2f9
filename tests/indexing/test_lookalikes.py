from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from indexing import lookalikes as module
from indexing.exact import ExactIndex
from indexing.lexical import LexicalConfig, text_neighbours
from indexing.lookalikes import lookalikes, near_taken, untaken_texts

TEXTS = ("red shoe", "red running shoe", "blue running shoe", "iron pan", "red pan", "")
TEXT_ROWS = np.array([0, 1, 2, 3, 4, 5, 0])
POPULARITY = np.array([0, 3, 1, 2, 0, 9, 0], dtype=np.float32)  # nobody took the items of texts 0 and 4
NOTHING_NEAR = sp.csr_matrix((6, 6), dtype=np.float32)


def matrix_by_hand(cosines: np.ndarray, near: np.ndarray, n_lookalikes: int) -> np.ndarray:
    """Item by item: the nearest other texts that somebody took, by shares of squares, by words and by vectors alike."""
    taken = [float(POPULARITY[text == TEXT_ROWS].sum()) for text in range(len(TEXTS))]
    expected = np.zeros((len(TEXTS), len(TEXT_ROWS)), dtype=np.float32)
    for item, text in enumerate(TEXT_ROWS):
        others = [j for j in range(len(TEXTS)) if j != text and taken[j] and cosines[text, j] > 0]
        nearest = sorted(others, key=lambda j, own=text: (-cosines[own, j], j))[:n_lookalikes]
        squares = np.zeros(len(TEXTS))
        squares[nearest] = cosines[text, nearest] ** 2
        kinds = [row / row.sum() for row in (squares, near[text]) if row.any()]
        if kinds:
            expected[:, item] = sum(kinds) / len(kinds)
    return expected


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.normal(size=(n, 4)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestLookalikes:
    @pytest.mark.parametrize("n_lookalikes", [1, 2, 30])
    def test_equal_a_loop(self, n_lookalikes):
        config = LexicalConfig(n_lookalikes=n_lookalikes)
        neighbours = text_neighbours(TEXTS, config)
        found = lookalikes(neighbours, NOTHING_NEAR, TEXT_ROWS, POPULARITY, config)
        expected = matrix_by_hand(neighbours.toarray(), NOTHING_NEAR.toarray(), n_lookalikes)
        np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)
        assert found.dtype == np.float32

    def test_words_and_vectors_count_half_each_where_there_are_both(self):
        near = np.zeros((6, 6), dtype=np.float32)
        near[0, [3, 5]] = 0.2, 0.6
        near[4, 2] = 0.01
        neighbours = text_neighbours(TEXTS, LexicalConfig())
        found = lookalikes(neighbours, sp.csr_matrix(near), TEXT_ROWS, POPULARITY, LexicalConfig()).toarray()
        np.testing.assert_allclose(found, matrix_by_hand(neighbours.toarray(), near, 30), atol=1e-6)
        assert found[3, 0] == pytest.approx(0.125)
        assert found[2, 4] == pytest.approx(0.5)

    def test_vectors_alone_speak_for_a_text_without_words(self):
        near = sp.csr_matrix(np.array([[0.0, 0.5], [0.0, 0.0]], dtype=np.float32))
        rows, taken = np.array([0, 1]), np.array([0, 1], dtype=np.float32)
        found = lookalikes(text_neighbours(["", "lamp"], LexicalConfig()), near, rows, taken, LexicalConfig())
        np.testing.assert_array_equal(found.toarray(), [[0, 0], [1, 0]])

    def test_a_text_never_listens_to_itself_nor_to_one_that_nobody_took(self):
        neighbours = text_neighbours(TEXTS, LexicalConfig())
        found = lookalikes(neighbours, NOTHING_NEAR, TEXT_ROWS, POPULARITY, LexicalConfig())
        assert found[[0, 4, 5]].nnz == 0
        assert not found.toarray()[TEXT_ROWS, np.arange(len(TEXT_ROWS))].any()

    def test_are_none_without_words_or_without_anything_taken(self):
        config, nothing, rows = LexicalConfig(), np.zeros(2, dtype=np.float32), np.array([0, 1])
        none = sp.csr_matrix((2, 2), dtype=np.float32)
        assert lookalikes(text_neighbours(["", "🎧"], config), none, rows, nothing + 1, config).nnz == 0
        assert lookalikes(text_neighbours(["red", "red hat"], config), none, rows, nothing, config).nnz == 0

    def test_leave_the_neighbours_as_they_are_in_blocks_of_any_size(self, monkeypatch):
        rng = np.random.default_rng(0)
        texts = [" ".join(f"w{word}" for word in row) for row in rng.integers(0, 30, (50, 4))]
        config, none = LexicalConfig(n_neighbours=10, n_lookalikes=3), sp.csr_matrix((50, 50), dtype=np.float32)
        neighbours, taken = text_neighbours(texts, config), np.arange(50, dtype=np.float32) % 3
        before = neighbours.copy()
        found = lookalikes(neighbours, none, np.arange(50), taken, config)
        assert (neighbours != before).nnz == 0
        assert neighbours.nnz == before.nnz
        monkeypatch.setattr(module, "ROWS_PER_BLOCK", 7)
        assert (lookalikes(neighbours, none, np.arange(50), taken, config) != found).nnz == 0


class TestNearTaken:
    rng = np.random.default_rng(3)
    text_rows = rng.integers(0, 40, 120)
    popularity = (rng.random(120) < 0.3).astype(np.float32)
    searchable = rng.random(120) < 0.8
    vectors = unit(rng, 120)

    def found(self, k: int = 5, popularity: np.ndarray | None = None) -> np.ndarray:
        popularity = self.popularity if popularity is None else popularity
        index = ExactIndex(self.vectors, device="cpu")
        return near_taken(index, self.vectors, self.searchable, self.text_rows, popularity, 41, k).toarray()

    def test_equals_a_loop(self):
        expected = np.zeros((41, 41))
        allowed = np.flatnonzero(self.searchable & (self.popularity > 0))
        for text in range(40):
            own = np.flatnonzero(self.text_rows == text)
            if len(own) == 0 or self.popularity[own].any() or not self.searchable[own[0]]:
                continue
            cosines = self.vectors[allowed] @ self.vectors[own[0]]
            for place in np.argsort(-cosines)[:5]:
                expected[text, self.text_rows[allowed[place]]] += max(0.0, cosines[place]) ** 2
        assert expected.any(axis=1).sum() > 5
        np.testing.assert_allclose(self.found(), expected, atol=1e-6)

    def test_says_nothing_where_all_was_taken_or_nothing(self):
        assert not self.found(popularity=np.ones(120, dtype=np.float32)).any()
        assert not self.found(popularity=np.zeros(120, dtype=np.float32)).any()

    def test_looks_for_the_last_texts_alone_where_there_are_many(self, monkeypatch):
        whole = self.found()
        monkeypatch.setattr(module, "MOST_SEARCHED", 3)
        some = self.found()
        places = {text: self.text_rows.tolist().index(text) for text in np.flatnonzero(whole.any(axis=1)).tolist()}
        last = sorted(places, key=lambda text: places[text])[-3:]
        assert last != sorted(places)[-3:]
        np.testing.assert_array_equal(some[last], whole[last])
        assert some.any(axis=1).sum() == 3


def test_a_text_is_untaken_where_none_of_its_items_was_taken():
    assert untaken_texts(TEXT_ROWS, POPULARITY, 7).tolist() == [True, False, False, False, True, False, True]
