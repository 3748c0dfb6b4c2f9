"""Nearest items by vectors: to items of the catalogue, and to texts that nobody has seen before.

Owns one search of the index. Who is asked for what, ids and frames are `recsys/recommender.py`.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.rerank import top_k
from recsys.catalogue import Catalogue
from recsys.towers import Towers


def nearest_to_items(towers: Towers, catalogue: Catalogue, rows: npt.NDArray[np.int64], k: int) -> pl.DataFrame:
    """At most `k` available items nearest to each item, never itself: `user_row`, `item_row`, `rank`, `score`.

    Args:
        towers: of the catalogue.
        catalogue: the items.
        rows: int64 (n,), distinct, searchable; `user_row` numbers them.
        k: neighbours an item.
    """
    pairs = _search(towers, catalogue, towers.item_vectors[rows], k + 1)
    own = pl.Series(rows).gather(pairs["user_row"])
    return top_k(pairs.filter(pl.col("item_row") != own), k)


def nearest_to_texts(towers: Towers, catalogue: Catalogue, texts: list[str], k: int) -> pl.DataFrame:
    """At most `k` available items nearest to each text: `user_row` numbers the texts, `item_row`, `rank`, `score`."""
    return top_k(_search(towers, catalogue, towers.embed(texts), k), k)


def _search(towers: Towers, catalogue: Catalogue, vectors: npt.NDArray[np.float32], k: int) -> pl.DataFrame:
    found, scores = towers.index.search(vectors, k, allowed=catalogue.available & towers.searchable)
    pairs = pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(len(vectors), dtype=np.int32), found.shape[1]),
            "item_row": found.ravel(),
            "score": scores.ravel(),
        }
    )
    return pairs.filter(pl.col("item_row") >= 0)
