"""What window B teaches about the sources: what each is worth in the blend, and whether new items are one of their own.

Owns these two judgements. Opening the window is `recsys/pipeline.py`, the sources are `indexing/retriever.py`.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.candidates import source_names
from recsys.config import RecommenderConfig
from recsys.notes import Notes
from recsys.splits import time_split
from recsys.windows import Windows, novelty

MIN_SOURCE_WEIGHT = 0.05
WEIGHED_DEPTH = 100


def weigh_sources(
    candidates: pl.DataFrame, labels: pl.DataFrame, popularity: npt.NDArray[np.float32]
) -> dict[str, float]:
    """A source's worth in the blend: the recall of its first `WEIGHED_DEPTH`, relative to that of the best source.

    The depth is that of the lists which the blend decides about. What a source has among its first ten says little
    about that: one with a few sure hits on top and nothing below would bury one that finds much more a little later.
    Each user counts alike, so that one who takes a lot does not decide for all. Where new items are a source of their
    own, the others are worth what they find besides these.

    Args:
        candidates: `user_row`, `item_row`, `<source>_rank`.
        labels: `user_row`, `item_row`, distinct: what was taken, and could be shown.
        popularity: float32 (n_items,), 0 for an item that nobody took before the window.
    """
    taken = candidates.join(labels, on=["user_row", "item_row"], how="semi")
    findable = labels.group_by("user_row").agg(pl.len().clip(upper_bound=WEIGHED_DEPTH).alias("findable"))
    taken = taken.join(findable, on="user_row", maintain_order="left")
    names = source_names(candidates.columns)
    known = taken.filter(popularity[taken["item_row"].to_numpy()] > 0.0) if "new" in names else taken
    recalls = {}
    for name in names:
        found = (taken if name == "new" else known).filter(pl.col(f"{name}_rank") <= WEIGHED_DEPTH)
        recalls[name] = float((1.0 / found["findable"]).sum())
    best = max(recalls.values(), default=0.0)
    return {name: max(recall / best, MIN_SOURCE_WEIGHT) if best else 1.0 for name, recall in recalls.items()}


def decide_ease(interactions: pl.DataFrame, config: RecommenderConfig, notes: Notes) -> bool:
    """Whether EASE is a source, once for every moment of a fit: its solve holds the square of the items taken."""
    taken, most = interactions["item_id"].n_unique(), config.ease.max_items
    if config.retriever.ease and taken > most:
        notes.add(f"ease: left out, {taken} items were taken and ease.max_items is {most}.")
    return config.retriever.ease > 0 and taken <= most


def decide_news(windows: Windows, config: RecommenderConfig, notes: Notes) -> bool:
    """Whether items that nobody took yet are a source of their own: what is taken was often never taken before."""
    share, limit = novelty(windows.labels_b, windows.history_b), config.novelty_limit
    common, sought = share >= limit, bool(config.retriever.finding_new)
    decision = "a source of their own" if common and sought else "no source of their own"
    notes.add(
        f"new items: {share:.0%} of what was taken in window B had never been taken before (limit {limit:.0%}), "
        f"so items that nobody took yet are {decision}{' (switched off)' if common and not sought else ''}."
    )
    if windows.kind == "last" and not common:
        newest = time_split(pl.concat([windows.history_c, windows.labels_c]))
        share = novelty(newest.test, newest.train)
        if share >= limit:
            notes.add(
                f"new items: {share:.0%} of the newest interactions are with items that nobody had taken before them, "
                "which windows of each user's last interactions hardly show. Lists for the days to come are better "
                'with windows.kind = "time".',
                level=logging.WARNING,
            )
    return common and sought
