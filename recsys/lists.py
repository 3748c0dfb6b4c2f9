"""Stage 1, stage 2 and the cut: the best items of each user, with who proposed them.

Owns the blocks in which users are ranked and what a user without history gets. Ids and the caller's frames are
`recsys/recommender.py`.
"""

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm import tqdm

from ranking.rerank import top_k
from recsys.config import RecommenderConfig
from recsys.fitted import Fitted
from recsys.snapshot import People, candidate_frame

USERS_PER_BLOCK = 512


def best_items(
    state: Fitted,
    people: People,
    k: int,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
    progress: bool,
) -> pl.DataFrame:
    """The best `k` of each user, block by block so that memory does not grow with the number of users.

    Returns:
        `user_row`, `item_row`, `rank`, `score`, `stage1_score`, `interest_score`, `is_fallback` and `<source>_rank`.
    """
    starts = range(0, max(len(people), 1), USERS_PER_BLOCK)
    parts = [
        _block(state, people.slice(start, start + USERS_PER_BLOCK), k, config, blocked, hide_seen).with_columns(
            pl.col("user_row") + pl.lit(start, dtype=pl.Int32)
        )
        for start in tqdm(starts, desc="recommend", disable=not progress)
    ]
    return pl.concat(parts)


def _block(
    state: Fitted, people: People, k: int, config: RecommenderConfig, blocked: npt.NDArray[np.bool_], hide_seen: bool
) -> pl.DataFrame:
    """Ranker's scores for people with history, the blend of what is popular for the others."""
    frame = candidate_frame(
        people,
        state.snapshot,
        state.interest,
        state.catalogue,
        config,
        blocked=blocked,
        hide_seen=hide_seen,
        n_candidates=max(k, config.retriever.n_candidates),
    )
    known = pl.Series(people.histories.lengths > 0)
    frame = frame.with_columns(is_fallback=~known.gather(frame["user_row"]))
    score = pl.col("stage1_score").cast(pl.Float64)
    if state.ranker is not None:
        ranked = pl.Series(state.ranker.predict(frame), dtype=pl.Float64)
        score = pl.when("is_fallback").then(score).otherwise(ranked)
    if "interest_score" not in frame.columns:
        frame = frame.with_columns(interest_score=pl.lit(None, dtype=pl.Float32))
    ranks = [name for name in frame.columns if name.endswith("_rank") and name != "interest_rank"]
    kept = ["user_row", "item_row", "score", "stage1_score", "interest_score", "is_fallback", *ranks]
    return top_k(frame.with_columns(score=score).select(kept), k)


def with_source(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `source`: the names of the sources that proposed the item, joined by "+"."""
    names = [name.removesuffix("_rank") for name in frame.columns if name.endswith("_rank") and name != "interest_rank"]
    proposed = [pl.when(pl.col(f"{name}_rank").is_not_null()).then(pl.lit(name)) for name in names]
    return frame.with_columns(source=pl.concat_str(proposed, separator="+", ignore_nulls=True))
