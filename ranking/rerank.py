"""From scored candidates to the final list. Rules that change an order after the ranker belong here."""

import polars as pl


def top_k(scored: pl.DataFrame, k: int) -> pl.DataFrame:
    """The best `k` rows of each user.

    Args:
        scored: `user_row`, `item_row`, `score` and further columns.
        k: list length, at least 1.

    Returns:
        Sorted by `user_row` and `rank` (Int32, from 1, best first); equal scores are ordered by `item_row`.
    """
    ordered = scored.sort(["user_row", "score", "item_row"], descending=[False, True, False])
    ranked = ordered.with_columns(rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("user_row"))
    return ranked.filter(pl.col("rank") <= k)
