"""Nearest items by vectors: to items of the catalogue, and to texts that nobody has seen before.

Owns one search of the index, and the ids in its answer. Arguments and the caller's frames are `recsys/recommender.py`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.rerank import top_k
from recsys.arguments import distinct_texts, positive
from recsys.catalogue import Catalogue
from recsys.fitted import Fitted
from recsys.lists import report_short
from recsys.requests import item_rows
from recsys.text import TEXT_CHARS, clean
from recsys.towers import Towers


def nearest_to_items(state: Fitted, items: Iterable[Any], k: int) -> pl.DataFrame:
    """At most `k` available items nearest to each item, never itself; see `Recommender.similar_items`."""
    asked = pl.Series(item_rows(state.catalogue, items, "items")).unique(maintain_order=True).to_numpy()
    rows = asked[state.towers.searchable[asked]]
    most = min(positive(k, "k"), len(state.catalogue))
    pairs = _search(state.towers, state.catalogue, state.towers.item_vectors[rows], most + 1)
    own = pl.Series(rows).gather(pairs["user_row"])
    best = top_k(pairs.filter(pl.col("item_row") != own), most)
    report_short(state, best, len(asked), k)
    found = state.catalogue.ids_of(best["item_row"].to_numpy()).alias("similar_item_id")
    near = state.catalogue.ids_of(rows[best["user_row"].to_numpy()])
    return pl.DataFrame([near, found, best["rank"], best["score"]])


def nearest_to_texts(state: Fitted, texts: Sequence[str], k: int) -> pl.DataFrame:
    """At most `k` available items nearest to each text, none to a blank one; see `Recommender.search`."""
    asked, most = distinct_texts(texts), min(positive(k, "k"), len(state.catalogue))
    read = {text: clean(text, TEXT_CHARS) for text in asked}  # as texts of items are read
    said = [text for text in asked if read[text]]  # a vector of nothing would be near anything
    vectors = state.towers.embed([read[text] for text in said])
    best = top_k(_search(state.towers, state.catalogue, vectors, most), most)
    report_short(state, best, len(asked), k)
    texts_found = pl.Series("text", said, dtype=pl.String).gather(best["user_row"])
    found = state.catalogue.ids_of(best["item_row"].to_numpy())
    return pl.DataFrame([texts_found, found, best["rank"], best["score"]])


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
