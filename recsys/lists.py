"""Stage 1, stage 2 and the cut: the best items of each user, with who proposed them.

Owns the blocks in which users are ranked and what a user without history gets. Ids and the caller's frames are
`recsys/recommender.py`.
"""

import logging

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm import tqdm

from ranking.rerank import top_k
from recsys.config import RecommenderConfig
from recsys.fitted import Fitted
from recsys.rules import ReadyRules, arrange
from recsys.snapshot import People, candidate_frame

log = logging.getLogger("recsys")

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
    rules: ReadyRules | None = None,
) -> pl.DataFrame:
    """The best `k` of each user, block by block so that memory does not grow with the number of users.

    Returns:
        `user_row`, `item_row`, `rank`, `score`, `stage1_score`, `interest_score`, `is_fallback`, `<source>_rank` and,
        where there are rules, `rules`: which of them are behind an item's place.
    """
    starts = range(0, max(len(people), 1), USERS_PER_BLOCK)
    parts = [
        _block(
            state,
            people.slice(start, start + USERS_PER_BLOCK),
            k,
            config,
            blocked=blocked,
            hide_seen=hide_seen,
            rules=rules,
        ).with_columns(pl.col("user_row") + pl.lit(start, dtype=pl.Int32))
        for start in tqdm(starts, desc="recommend", disable=not progress)
    ]
    return pl.concat(parts)


def _block(
    state: Fitted,
    people: People,
    k: int,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
    rules: ReadyRules | None,
) -> pl.DataFrame:
    frame = scored_candidates(state, people, k, config, blocked=blocked, hide_seen=hide_seen)
    ranks = [f"{name}_rank" for name in state.snapshot.retriever.sources]
    kept = frame.select("user_row", "item_row", "score", "stage1_score", "interest_score", "is_fallback", *ranks)
    return top_k(kept, k) if rules is None else arrange(kept, people, k, rules, blocked=blocked, hide_seen=hide_seen)


def scored_candidates(
    state: Fitted,
    people: People,
    k: int,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
) -> pl.DataFrame:
    """The columns of `recsys.snapshot.candidate_frame`, with `interest_score` always, `score` and `is_fallback`.

    The score is the ranker's for people with history, the blend of what is popular for the others.
    """
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
    known = (people.histories.lengths > 0)[frame["user_row"].to_numpy()]
    score = frame["stage1_score"].to_numpy().astype(np.float64)
    ranker = state.ranker_for(hide_seen=hide_seen)
    if ranker is not None:
        score = np.where(known, ranker.predict(frame), score)
    added = {"is_fallback": pl.Series(~known), "score": pl.Series(score)}
    if "interest_score" not in frame.columns:
        added["interest_score"] = pl.repeat(None, len(frame), dtype=pl.Float32, eager=True)
    return frame.with_columns(**added)


def with_source(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `source`: the names of the sources that proposed the item, joined by "+", then the rules behind its place."""
    names = [name.removesuffix("_rank") for name in frame.columns if name.endswith("_rank") and name != "interest_rank"]
    proposed = [pl.when(pl.col(f"{name}_rank").is_not_null()).then(pl.lit(name)) for name in names]
    source = pl.concat_str(proposed, separator="+", ignore_nulls=True)
    if "rules" in frame.columns:
        source = pl.concat_str(source.replace("", None), "rules", separator=", ", ignore_nulls=True)
    return frame.with_columns(source=source)


def report_short(state: Fitted, lists: pl.DataFrame, n_asked: int, k: int) -> None:
    """Log how many of the lists asked for have fewer than `k` rows."""
    short = n_asked - lists.filter(pl.col("rank") == k).height
    if short:
        log.warning(
            "%d of %d lists have fewer than k=%d items (%d items are available before filters)",
            short,
            n_asked,
            k,
            int(state.catalogue.available.sum()),
        )
