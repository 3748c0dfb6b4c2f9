from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from indexing.lexical import tokenize
from indexing.words import Words

TEXTS = [
    "red cast iron pan",
    "iron pan, iron lid",
    "Red running shoe",
    "shoe for running and running",
    "无线耳机",
    "蓝牙耳机",
]


def test_weigh_as_scikit_learn_does():
    expected = TfidfVectorizer(analyzer=tokenize, min_df=2, sublinear_tf=True)
    known = expected.fit_transform(TEXTS)
    words = Words.fit(TEXTS, max_words=1000)
    assert words.vocabulary == expected.vocabulary_
    np.testing.assert_allclose(words.transform(TEXTS).toarray(), known.toarray(), atol=1e-6)
    new = ["iron iron shoe", "nothing known", ""]
    np.testing.assert_allclose(words.transform(new).toarray(), expected.transform(new).toarray(), atol=1e-6)
    assert words.transform(new).dtype == np.float32


def test_are_those_that_stand_in_two_texts():
    words = Words.fit(TEXTS, max_words=1000)
    assert set(words.vocabulary) == {"red", "iron", "pan", "running", "shoe", "耳", "机", "耳机"}
    assert sorted(words.vocabulary.values()) == list(range(len(words)))


def test_of_chinese_are_characters_and_pairs():
    words = Words.fit(TEXTS, max_words=1000)
    one, other, strange = words.transform(["降噪耳机", "耳机", "运动鞋"]).toarray()
    assert set(np.flatnonzero(one)) == {words.vocabulary[word] for word in ("耳", "机", "耳机")}
    assert one @ other == pytest.approx(1.0)
    assert not strange.any()


def test_at_most_so_many_are_kept_the_most_frequent():
    assert list(Words.fit(TEXTS, max_words=2).vocabulary) == ["iron", "running"]


@pytest.mark.parametrize(
    ("texts", "max_words"), [([], 10), (TEXTS, 0), (["", "..."], 10), (["each", "word", "once"], 10)]
)
def test_there_may_be_none(texts, max_words):
    words = Words.fit(texts, max_words=max_words)
    assert len(words) == 0
    assert words.transform(["red pan", ""]).shape == (2, 0)


def test_of_a_single_text_are_its_own():
    assert set(Words.fit(["one red pan"], max_words=10).vocabulary) == {"one", "red", "pan"}


@pytest.mark.parametrize("max_words", [1000, 0])
def test_survive_the_disk(tmp_path, max_words):
    words = Words.fit(TEXTS, max_words=max_words)
    words.save(tmp_path / "words")
    assert [path.name for path in (tmp_path / "words").iterdir()] == ["words.json"]
    loaded = Words.load(tmp_path / "words")
    assert loaded.vocabulary == words.vocabulary
    before, after = (given.transform([*TEXTS, "new pan"]) for given in (words, loaded))
    np.testing.assert_array_equal(before.toarray(), after.toarray())
