"""Stage 1, stage 2 and the cut: the best items of each user, with who proposed them.

Owns the blocks in which users are ranked and what a user without history gets. Ids and the caller's frames are
`recsys/recommender.py`.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from indexing.blocks import AT_ONCE, map_blocks
from ranking.features import Columns
from ranking.rerank import best_places
from recsys.arguments import FilterSeen, hide_seen, positive
from recsys.candidates import candidate_columns, source_names, to_frame
from recsys.config import RecommenderConfig
from recsys.fitted import Fitted
from recsys.rules import ReadyRules, Rules, arrange, prepare_rules
from recsys.snapshot import People

log = logging.getLogger("recsys")

USERS_PER_BLOCK = 128  # as fast as 512, in a quarter of the memory
LISTED = ("user_row", "item_row", "score")
DETAILS = ("stage1_score", "interest_score", "is_fallback")


def named_lists(
    state: Fitted,
    people: People,
    ids: pl.Series,
    k: int,
    config: RecommenderConfig,
    *,
    filter_seen: FilterSeen,
    blocked: npt.NDArray[np.bool_],
    rules: Rules | None,
    details: bool,
) -> pl.DataFrame:
    """Rank, a word about short lists, and ids instead of rows; see `Recommender.recommend`."""
    hide = hide_seen(filter_seen, auto=state.hide_seen)
    most = min(positive(k, "k"), len(state.catalogue))
    ready = None if rules is None else prepare_rules(rules, state, k)
    lists = best_items(
        state, people, most, config, blocked=blocked if ready is None else blocked | ~ready.allowed,
        hide_seen=hide, progress=config.progress and len(ids) > 1, rules=ready, details=details,
    )  # fmt: skip
    report_short(state, lists, len(ids), k)
    columns = ["user_id", "item_id", "rank", "score"]
    if details:
        columns += ["source", "stage1_score", "interest_score", "is_fallback"]
        lists = with_source(lists)
    return named(state, lists, ids, columns)


def named(state: Fitted, lists: pl.DataFrame, ids: pl.Series, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns, with `user_id` and `item_id` made from `user_row` and `item_row`."""
    items = state.catalogue.ids_of(lists["item_row"].to_numpy())
    known = {"user_id": ids.gather(lists["user_row"]), "item_id": items}
    return pl.DataFrame([(known[name] if name in known else lists[name]).alias(name) for name in columns])


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
    details: bool = True,
) -> pl.DataFrame:
    """The best `k` of each user, block by block so that memory does not grow with the number of users.

    With the interest model one block after the other: a tokenizer is not safe for several threads, and the model keeps
    all cores busy.

    Returns:
        `user_row`, `item_row`, `rank`, `score` and, with `details`, `stage1_score`, `interest_score`, `is_fallback`,
        `<source>_rank` and, where there are rules, `rules`: which of them are behind an item's place.
    """
    starts = range(0, max(len(people), 1), USERS_PER_BLOCK)

    def listed(start: int) -> pl.DataFrame:
        some = people.slice(start, start + USERS_PER_BLOCK)
        lists = _block(state, some, k, config, blocked=blocked, hide_seen=hide_seen, rules=rules, details=details)
        return lists.with_columns(pl.col("user_row") + pl.lit(start, dtype=pl.Int32))

    at_once = AT_ONCE if state.interest is None else 1
    return pl.concat(map_blocks(listed, starts, desc="recommend", progress=progress, at_once=at_once))


def _block(
    state: Fitted,
    people: People,
    k: int,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
    rules: ReadyRules | None,
    details: bool,
) -> pl.DataFrame:
    columns = scored_candidates(state, people, k, config, blocked=blocked, hide_seen=hide_seen)
    ranks = [f"{name}_rank" for name in state.snapshot.retriever.sources]
    names = [*LISTED, *DETAILS, *ranks] if details or rules is not None else LISTED
    if rules is not None:
        frame = to_frame({name: columns[name] for name in names})
        return arrange(frame, people, k, rules, blocked=blocked, hide_seen=hide_seen)
    places, place = best_places(columns["user_row"], columns["item_row"], columns["score"], k)
    return to_frame({name: columns[name][places] for name in names} | {"rank": place})


def scored_candidates(
    state: Fitted,
    people: People,
    k: int,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
) -> Columns:
    """The columns of `recsys.candidates.candidate_columns`, with `interest_score` always, `score` and `is_fallback`.

    The score is the ranker's for people with history, the blend of what is popular for the others.
    """
    columns = candidate_columns(
        people,
        state.snapshot,
        state.interest,
        state.catalogue,
        config,
        blocked=blocked,
        hide_seen=hide_seen,
        n_candidates=max(k, config.retriever.n_candidates),
    )
    known = (people.histories.lengths > 0)[columns["user_row"]]
    score = columns["stage1_score"].astype(np.float64)
    ranker = state.ranker_for(hide_seen=hide_seen)
    if ranker is not None:
        score = np.where(known, ranker.predict(columns), score)
    nothing = np.full(len(known), np.nan, dtype=np.float32)
    return {"interest_score": nothing} | columns | {"is_fallback": ~known, "score": score}


def with_source(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `source`: the names of the sources that proposed the item, joined by "+", then the rules behind its place."""
    names = source_names(frame.columns)
    proposed = [pl.when(pl.col(f"{name}_rank").is_not_null()).then(pl.lit(name)) for name in names]
    source = pl.concat_str(proposed, separator="+", ignore_nulls=True)
    if "rules" in frame.columns:
        source = pl.concat_str(source.replace("", None), "rules", separator=", ", ignore_nulls=True)
    return frame.with_columns(source=source)


def report_short(state: Fitted, lists: pl.DataFrame, n_asked: int, k: int) -> None:
    """Log how many of the lists asked for have fewer than `k` rows."""
    short = n_asked - int((lists["rank"].to_numpy() == k).sum())
    if short:
        log.warning(
            "%d of %d lists have fewer than k=%d items (%d items are available before filters)",
            short,
            n_asked,
            k,
            int(state.catalogue.available.sum()),
        )
