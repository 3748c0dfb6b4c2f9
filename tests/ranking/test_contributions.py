"""What each feature adds to a score."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ranking.ranker import Ranker, RankerConfig

CONFIG = RankerConfig(n_trees=20, early_stopping=5, min_leaf_rows=5, n_threads=1)
FEATURES = ["noise", "planted"]


def rows_of(n_users: int = 60, n_items: int = 10, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    taken = np.tile(np.arange(n_items), n_users) == np.repeat(np.arange(n_users) % n_items, n_items)
    return pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), n_items),
            "label": taken.astype(np.int8),
            "noise": rng.normal(size=len(taken)),
            "planted": rng.random(len(taken)) + taken,
        }
    )


@pytest.fixture(scope="module")
def fitted() -> Ranker:
    return Ranker(CONFIG, seed=1).fit(rows_of(), rows_of(20, seed=5), FEATURES)


def test_contributions_and_bias_sum_to_the_score(fitted):
    rows = rows_of(10, seed=9).with_columns(noise=pl.when(pl.col("label") == 0).then("noise"))
    parts = fitted.contributions(rows)
    assert parts.shape == (rows.height, 3)
    assert parts.dtype == np.float64
    np.testing.assert_allclose(parts.sum(axis=1), fitted.predict(rows), atol=1e-6)


def test_a_loaded_ranker_gives_the_same(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = Ranker.load(tmp_path, CONFIG, seed=1)
    np.testing.assert_allclose(loaded.contributions(rows_of(5)), fitted.contributions(rows_of(5)), atol=1e-9)


def test_what_gives_the_taken_item_away_contributes_most(fitted):
    noise, planted, _ = np.abs(fitted.contributions(rows_of(10, seed=9))).mean(axis=0)
    assert planted > 1.5 * noise


def test_of_no_rows_has_no_rows(fitted):
    assert fitted.contributions(rows_of().head(0)).shape == (0, 3)


def test_refuses_a_missing_feature_and_a_ranker_that_has_not_learnt(fitted):
    with pytest.raises(ValueError, match=r"1 feature columns are missing, first: \['noise'\]"):
        fitted.contributions(rows_of().drop("noise"))
    with pytest.raises(RuntimeError, match="not fitted; call fit or load first"):
        Ranker(CONFIG, seed=1).contributions(rows_of())
