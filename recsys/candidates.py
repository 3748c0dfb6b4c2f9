"""Candidates of some people and what is known of each pair: stage-1 scores, interest score, behavioural features.

One implementation for training and serving. What is known at a moment is `recsys/snapshot.py`, the features themselves
are `ranking/`.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from indexing.retriever import Candidates
from indexing.sparse import place_in_runs
from ranking.features import Columns, build_features
from ranking.interest import InterestModel
from ranking.similarity import add_similarity
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.snapshot import People, Snapshot
from recsys.text import history_text

ROUNDING = 1e-3  # seconds by which two ways of counting them may differ


def candidate_columns(
    people: People,
    snapshot: Snapshot,
    interest: InterestModel | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    blocked: npt.NDArray[np.bool_],
    hide_seen: bool,
    n_candidates: int | None = None,
    progress: bool = False,
) -> Columns:
    """Retrieve for every user and describe each candidate: stage-1 scores, interest score, behavioural features.

    Returns:
        `user_row`, `item_row`, `stage1_score`, `stage1_rank`, `<source>_score`, `<source>_rank`, `interest_score`,
        `interest_rank` and what `ranking.features.build_features` and `ranking.similarity.add_similarity` add.
    """
    candidates = snapshot.retriever.retrieve(
        people.histories, blocked=blocked, hide_seen=hide_seen, n_candidates=n_candidates, progress=progress
    )
    return describe(to_columns(candidates), people, snapshot, interest, catalogue, config, progress=progress)


def describe(
    columns: Columns,
    people: People,
    snapshot: Snapshot,
    interest: InterestModel | None,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    progress: bool = False,
) -> Columns:
    """Add interest score and behavioural features to candidates, which lie best first for each user.

    Raises:
        ValueError: the snapshot knows what lies after the moment of a user.
    """
    moments = people.moments["moment"].to_numpy()
    if not snapshot.clock and (moments < snapshot.moment - ROUNDING).any():
        raise ValueError(f"the snapshot, of {snapshot.moment}, is later than the moment of a user, {moments.min()}")
    if interest is not None:
        columns = add_interest(columns, people, interest, catalogue, config, progress=progress)
    columns = build_features(columns, people.history, snapshot.table, people.moments, config.features, snapshot.kinds)
    columns = add_similarity(columns, people.history, snapshot.spaces, newest=config.features.similar_length)
    numbers = {} if people.numbers is None else people.numbers.drop("user_row").to_dict()
    return columns | {name: values.to_numpy()[columns["user_row"]] for name, values in numbers.items()}


def to_columns(candidates: Candidates) -> Columns:
    """Candidates as arrays by name; a source that did not propose an item has a NaN rank."""
    scores, ranks = np.ascontiguousarray(candidates.scores.T), np.ascontiguousarray(candidates.ranks.T)
    users, items = candidates.users.astype(np.int32), candidates.items.astype(np.int32)
    named: Columns = {"user_row": users, "item_row": items, "stage1_score": candidates.blend}
    named["stage1_rank"] = (place_in_runs(candidates.users) + 1).astype(np.float32)
    for row, name in enumerate(candidates.sources):
        named |= {f"{name}_score": scores[row], f"{name}_rank": ranks[row]}
    return named


def source_names(columns: Iterable[str]) -> list[str]:
    """The sources whose ranks are among the columns."""
    named = (name.removesuffix("_rank") for name in columns if name.endswith("_rank"))
    return [name for name in named if name not in ("stage1", "interest")]


def to_frame(columns: Columns) -> pl.DataFrame:
    """Arrays by name as a frame, null for NaN."""
    return pl.DataFrame(columns, nan_to_null=True)


def of_frame(frame: pl.DataFrame) -> Columns:
    """The columns of a frame as arrays, NaN for null."""
    return {column.name: column.to_numpy() for column in frame}


def add_interest(
    columns: Columns,
    people: People,
    interest: InterestModel,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    progress: bool = False,
) -> Columns:
    """Score the best `n_interest` candidates of each user with history; the others get NaN."""
    texts = history_texts(people, catalogue)
    users, known = columns["user_row"], np.array([len(text) > 0 for text in texts], dtype=np.bool_)
    chosen = np.flatnonzero((place_in_runs(users.astype(np.int64)) < config.n_interest) & known[users])
    found, owners = np.full((2, len(users)), np.nan, dtype=np.float32), users[chosen]
    shown = [catalogue.short_text_of(row) for row in columns["item_row"][chosen]]
    found[0, chosen] = interest.score([texts[row] for row in owners], shown, progress=progress)
    found[1, chosen] = interest_ranks(owners, found[0, chosen])
    return columns | {"interest_score": found[0], "interest_rank": found[1]}


def interest_ranks(users: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Place of each score among those of its user from 1, best first; equal ones share the first of their places."""
    order = np.lexsort((-scores, users))
    every, place = np.arange(len(users)), place_in_runs(users[order].astype(np.int64))
    equal = (np.diff(scores[order], prepend=np.nan) == 0.0) & (place > 0)
    ranks = np.empty(len(users), dtype=np.int64)
    ranks[order] = np.maximum.accumulate(np.where(equal, 0, every)) - (every - place) + 1
    return ranks


def history_texts(people: People, catalogue: Catalogue, *, newest: int = 20) -> list[str]:
    """One text for each user, made of the titles of his newest items; empty without history."""
    titles = catalogue.items["title"]
    histories = people.histories
    return [history_text(titles.gather(histories.of(user)[-newest:][::-1]).to_list()) for user in range(len(people))]
