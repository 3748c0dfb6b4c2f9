from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given
from hypothesis import strategies as st

from indexing import lexical as module
from indexing.lexical import (
    LexicalConfig,
    count_tokens,
    lexical_neighbours,
    renewed_neighbours,
    text_neighbours,
    tokenize,
    tokenize_all,
)

CATALOGUE = [
    "red running shoe",
    "blue running shoe",
    "cast iron pan",
    "无线降噪耳机",
    "蓝牙耳机 头戴式",
    "铸铁煎锅",
    "iron",
    "🎧🎧",
    "",
    "lamp, lamp, lamp: red",
]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Red RUNNING shoe, size 42!", ["red", "running", "shoe", "size", "42"]),
        ("耳机", ["耳", "机", "耳机"]),
        ("无线耳机", ["无", "线", "耳", "机", "无线", "线耳", "耳机"]),
        ("靴", ["靴"]),
        ("カメラ", ["カ", "メ", "ラ", "カメ", "メラ"]),
        ("人々の", ["人", "々", "の", "人々", "々の"]),
        ("𠮷野家", ["𠮷", "野", "家", "𠮷野", "野家"]),
        ("ไทย", ["ไ", "ท", "ย", "ไท", "ทย"]),
        ("의자를", ["의", "자", "를", "의자", "자를"]),
        ("Sony耳机pro", ["sony", "耳", "机", "耳机", "pro"]),
        ("हिन्दी किताब", ["हिन्दी", "किताब"]),
        ("தமிழ்", ["தமிழ்"]),
        ("café Ærø", ["café", "ærø"]),
        ("кофе чёрный", ["кофе", "чёрный"]),
        ("🎧 headphones 🎧", ["headphones"]),
        ("🎧", []),
        ("。，！", []),
        ("", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30), max_size=5))
@example(["Ὀδυσσεύς İstanbul x² ½ naïve_name", "Sony耳机pro", "e\u0301 हिन्दी", ""])
def test_all_at_once_are_tokenized_alike(texts):
    assert tokenize_all(texts) == [tokenize(text) for text in texts]


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30), max_size=5))
@example(["a b a", "中文 a 中", ""])
def test_tokens_are_counted(texts):
    counts, tokens = count_tokens(texts)
    found = [
        {tokens[int(column)]: int(counts[row, column]) for column in counts[[row]].indices} for row in range(len(texts))
    ]
    assert found == [Counter(tokenize(text)) for text in texts]
    assert tokens.to_list() == sorted(set().union(*found))


def cosines(texts: list[str]) -> np.ndarray:
    """TF-IDF with 1 + log(tf) and smoothed idf, by dictionaries."""
    counted = [Counter(tokenize(text)) for text in texts]
    documents = Counter(token for counts in counted for token in counts)
    idf = {token: math.log((1 + len(texts)) / (1 + n)) + 1 for token, n in documents.items()}
    weights = [{token: (1 + math.log(n)) * idf[token] for token, n in counts.items()} for counts in counted]
    norms = [math.sqrt(sum(value**2 for value in weight.values())) or 1.0 for weight in weights]
    return np.array(
        [
            [
                sum(left[token] * right.get(token, 0) for token in left) / (a * b)
                for right, b in zip(weights, norms, strict=True)
            ]
            for left, a in zip(weights, norms, strict=True)
        ]
    )


class TestTextNeighbours:
    def test_equal_cosines_by_hand(self):
        found = text_neighbours(CATALOGUE, LexicalConfig())
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.toarray(), cosines(CATALOGUE), atol=1e-6)

    @pytest.mark.parametrize("cells", [1, 20, 40])
    def test_in_blocks_equal_those_of_one_block(self, monkeypatch, cells):
        whole = text_neighbours(CATALOGUE, LexicalConfig()).toarray()
        monkeypatch.setattr(module, "CELLS_PER_BLOCK", cells)
        np.testing.assert_array_equal(text_neighbours(CATALOGUE, LexicalConfig()).toarray(), whole)

    def test_find_chinese_titles_that_share_words(self):
        found = text_neighbours(CATALOGUE, LexicalConfig()).toarray()
        assert np.flatnonzero(found[3]).tolist() == [3, 4]
        assert np.flatnonzero(found[5]).tolist() == [5]

    def test_keep_the_text_itself_and_the_best_others(self):
        found = text_neighbours(["a b c", "a b d", "a e f", "g"], LexicalConfig(n_neighbours=1)).toarray()
        assert np.flatnonzero(found[0]).tolist() == [0, 1]
        np.testing.assert_allclose(found[[0, 1, 2, 3], [0, 1, 2, 3]], 1, atol=1e-6)

    def test_ignore_tokens_that_most_texts_share(self):
        texts = [f"shoe w{row // 2}" for row in range(60)]
        found = text_neighbours(texts, LexicalConfig(max_share=0.2))
        assert found[0].indices.tolist() == [0, 1]
        assert text_neighbours(texts, LexicalConfig(max_share=1.0, n_neighbours=60))[0].nnz == 60

    @pytest.mark.parametrize("texts", [["", "🎧"], ["。"], []])
    def test_of_an_empty_vocabulary_are_zero(self, texts):
        found = text_neighbours(texts, LexicalConfig())
        assert found.shape == (len(texts), len(texts))
        assert found.nnz == 0

    def test_are_zero_where_every_token_is_too_common(self):
        assert text_neighbours(["same"] * 50, LexicalConfig(max_share=0.2)).nnz == 0

    def test_show_progress_where_that_is_asked_for(self, capfd):
        text_neighbours(CATALOGUE, LexicalConfig())
        assert not capfd.readouterr().err
        text_neighbours(CATALOGUE, LexicalConfig(), progress=True)
        out, err = capfd.readouterr()
        assert "compare texts: 100%" in err
        assert not out


class TestLexicalNeighbours:
    neighbours = sp.csr_matrix(np.array([[1.0, 0.5], [0.5, 1.0]], dtype=np.float32))
    text_rows = np.array([1, 0, 1, 1, 0])
    popularity = np.array([2, 0, 7, 2, 1], dtype=np.float32)

    def test_let_the_most_popular_items_stand_for_a_text(self):
        config = LexicalConfig(items_per_text=2)
        found = lexical_neighbours(self.neighbours, self.text_rows, self.popularity, config)
        expected = [[0.5, 1.0, 0.5, 0, 1.0], [1.0, 0.5, 1.0, 0, 0.5]]
        np.testing.assert_array_equal(found.toarray(), expected)
        assert found.has_sorted_indices

    def test_keep_one_item_the_lowest_row_among_equals(self):
        popularity = np.zeros(5, dtype=np.float32)
        found = lexical_neighbours(self.neighbours, self.text_rows, popularity, LexicalConfig(items_per_text=1))
        assert found[0].indices.tolist() == [0, 1]

    def test_leave_out_texts_that_no_item_has(self):
        found = lexical_neighbours(self.neighbours, np.array([1, 1]), np.zeros(2, dtype=np.float32), LexicalConfig())
        np.testing.assert_array_equal(found.toarray(), [[0.5, 0.5], [1, 1]])


@pytest.mark.parametrize("wrong", [{"n_neighbours": 0}, {"items_per_text": 0}, {"n_lookalikes": 0}])
def test_config_refuses_empty_lists(wrong):
    with pytest.raises(ValueError, match="n_neighbours, items_per_text and n_lookalikes must be at least 1"):
        LexicalConfig(**wrong)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_config_refuses_a_share_outside_its_range(share):
    with pytest.raises(ValueError, match=rf"max_share={share} must lie in \(0, 1\]"):
        LexicalConfig(max_share=share)


def shelf(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of few words, the last of which is their own."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in rng.integers(0, 60, 4)) + f" own{row}" for row in range(count)]


def test_nothing_changes_where_no_text_does() -> None:
    config, texts = LexicalConfig(n_neighbours=10), shelf(300)
    old = text_neighbours(texts, config)
    same = renewed_neighbours(old, np.arange(300), texts, config)
    assert (same != old).nnz == 0


def test_new_texts_are_compared_with_all_and_all_with_them() -> None:
    config, texts = LexicalConfig(n_neighbours=10), shelf(300)
    old = text_neighbours(texts, config)
    turned = [
        "fresh " + texts[5],
        *texts[:40],
        *texts[41:200],
        "w1 w2",
        *texts[200:],
    ]  # one gone, two new, others moved
    places = np.array([-1, *range(40), *range(41, 200), -1, *range(200, 300)])
    found, whole = renewed_neighbours(old, places, turned, config), text_neighbours(turned, config)
    assert found.shape == whole.shape
    for row in np.flatnonzero(places < 0):
        np.testing.assert_allclose(found[row].toarray(), whole[row].toarray(), atol=1e-6)
    assert found[6, 0] == pytest.approx(whole[6, 0], abs=1e-6)  # the text that the first was made of sees it
    assert np.diff(found.indptr).max() <= 11
    common = [len({*found[row].indices} & {*whole[row].indices}) / whole[row].nnz for row in range(len(turned))]
    assert np.mean(common) > 0.97


def test_rows_that_lost_many_neighbours_are_compared_anew() -> None:
    config, texts = LexicalConfig(n_neighbours=10), shelf(300)
    old = text_neighbours(texts, config)
    gone = set(old[7].indices[:4].tolist()) - {7}
    places = np.array([row for row in range(300) if row not in gone])
    left = [texts[row] for row in places]
    row = int(np.flatnonzero(places == 7)[0])
    found = renewed_neighbours(old, places, left, config)
    np.testing.assert_allclose(found[row].toarray(), text_neighbours(left, config)[row].toarray(), atol=1e-6)


@pytest.mark.parametrize("texts", [[], ["", " "], ["🎧"]])
def test_renewed_without_a_usable_token(texts: list[str]) -> None:
    config = LexicalConfig()
    places = np.full(len(texts), -1)
    if texts:
        places[0] = 0
    found = renewed_neighbours(text_neighbours(texts, config), places, texts, config)
    assert found.shape == (len(texts), len(texts))
    assert found.nnz == 0
