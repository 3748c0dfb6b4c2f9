from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ranking.rerank import top_k

SCHEMA = {"user_row": pl.Int32, "item_row": pl.Int32, "score": pl.Float64}
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), unique=True, max_size=25).flatmap(
    lambda pairs: st.lists(st.sampled_from([0.0, -1.5, 2.0]), min_size=len(pairs), max_size=len(pairs)).map(
        lambda scores: [(*pair, score) for pair, score in zip(pairs, scores, strict=True)]
    )
)


def scored(rows: list[tuple[int, int, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_equal_scores_are_ordered_by_item_also_at_the_border():
    found = top_k(scored([(0, 9, 1.0), (0, 4, 1.0), (0, 7, 3.0), (0, 2, 1.0)]), 3)
    assert found.select("item_row", "rank").rows() == [(7, 1), (2, 2), (4, 3)]


@given(ROWS, st.integers(1, 12))
def test_equals_sorting_each_users_rows(rows, k):
    found = top_k(scored(rows), k)
    expected = []
    for user in range(4):
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: (-row[2], row[1]))
        expected += [(*row, place) for place, row in enumerate(mine[:k], start=1)]
    assert found.select("user_row", "item_row", "score", "rank").rows() == expected
    assert found.schema["rank"] == pl.Int32


def test_further_columns_stay():
    found = top_k(scored([(0, 1, 1.0), (0, 2, 2.0)]).with_columns(source=pl.col("item_row") * 10), 1)
    assert found["source"].to_list() == [20]
