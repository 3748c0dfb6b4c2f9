"""Both stages as of one moment: what is known about items and users, and the candidate rows made from it.

Training and serving build the same snapshot from the interactions known at their moment and ask it in the same way,
so that a feature or a score means the same in both. Fitting models is `recsys/pipeline.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from indexing.covisitation import covisitation
from indexing.ease import ease
from indexing.history import Histories
from indexing.lexical import lexical_neighbours
from indexing.retriever import Candidates, Retriever, build_retriever, recent_counts
from indexing.sources import NeighbourSource
from indexing.trending import group_neighbours
from ranking.features import build_features, item_statistics
from ranking.interest import InterestModel
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.text import history_text
from recsys.towers import Towers, histories_of


@dataclass(frozen=True)
class People:
    """The users of one request or one training window, numbered 0..n-1.

    Attributes:
        history: `user_row` Int32, `item_row` Int32, `seconds` Float64, `event_row` Int16; sorted by user, then time,
            then item.
        moments: `user_row`, `moment` (Unix seconds), one row a user: all of his history lies before it.
        numbers: `user_row` and Float32 columns from the users table, or None.
    """

    history: pl.DataFrame
    moments: pl.DataFrame
    numbers: pl.DataFrame | None = None

    def __len__(self) -> int:
        """Number of users."""
        return self.moments.height

    @cached_property
    def histories(self) -> Histories:
        """The same histories as arrays."""
        lengths = np.bincount(self.history["user_row"].to_numpy(), minlength=len(self))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        columns = (self.history[name].to_numpy() for name in ("item_row", "event_row", "seconds"))
        return Histories(offsets, *columns)

    def slice(self, start: int, stop: int) -> "People":
        """The users `start` to `stop`, renumbered from 0."""
        inside = pl.col("user_row").is_between(start, stop - 1)
        shifted = pl.col("user_row") - pl.lit(start, dtype=pl.Int32)
        numbers = None if self.numbers is None else self.numbers.filter(inside).with_columns(shifted)
        return People(
            self.history.filter(inside).with_columns(shifted),
            self.moments.filter(inside).with_columns(shifted),
            numbers,
        )


def gather_people(
    events: pl.DataFrame,
    user_ids: pl.Series,
    moments: pl.Series | float = math.inf,
    numbers: pl.DataFrame | None = None,
) -> People:
    """Number the users in the order given and collect what is known about them.

    Args:
        events: `user_id`, `item_row`, `seconds`, `event_row`; rows of other users are ignored.
        user_ids: distinct ids, n_users.
        moments: Float64 (n_users,), Unix seconds; or one number for all.
        numbers: `user_id` and Float32 columns, or None.
    """
    people = pl.DataFrame({"user_id": user_ids}).with_row_index("user_row").cast({"user_row": pl.Int32})
    people = people.with_columns(moment=moments)
    history = events.join(people, on="user_id").select("user_row", "item_row", "seconds", "event_row")
    known = None
    if numbers is not None:
        known = people.join(numbers, on="user_id", how="left").select("user_row", *numbers.columns[1:])
    return People(history.sort("user_row", "seconds", "item_row"), people.select("user_row", "moment"), known)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known about the items at a moment.

    Attributes:
        retriever: the sources.
        statistics: behavioural features of every item.
        behaviour: item neighbours learnt from behaviour, float32 CSR (n_items, n_items): "covisitation", "ease".
    """

    retriever: Retriever
    statistics: pl.DataFrame
    behaviour: Mapping[str, sp.csr_matrix]


def take_snapshot(
    events: pl.DataFrame,
    moment: float,
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
    weights: Mapping[str, float] | None = None,
    known_behaviour: Mapping[str, sp.csr_matrix] | None = None,
) -> Snapshot:
    """Build the sources and the item statistics from all interactions before the moment.

    Args:
        events: `user_id`, `item_row`, `seconds`, in order of time.
        moment: Unix seconds, later than every event.
        towers: trained before.
        catalogue: the items.
        config: depths, windows, neighbours.
        repeats: whether the user's own items are a source.
        weights: of the sources in the blend.
        known_behaviour: the matrices of the same events, where they were stored.
    """
    behaviour = known_behaviour
    if behaviour is None:
        behaviour = learn_behaviour(events, len(catalogue), config)
    rows = events["item_row"].to_numpy()
    neighbours = _neighbour_sources(behaviour, rows, towers, catalogue, config, repeats=repeats)
    retriever = build_retriever(
        config.retriever,
        encoder=towers.history_encoder,
        item_vectors=towers.item_vectors,
        index=towers.index,
        searchable=towers.searchable,
        neighbours=neighbours,
        rows=rows,
        weights=weights,
    )
    numbered = events.select(pl.col("user_id").rank("dense").alias("user_row"), "item_row", "seconds")
    statistics = item_statistics(numbered, catalogue.groups, moment, config.features)
    return Snapshot(retriever, statistics.join(catalogue.numbers, on="item_row", how="left"), behaviour)


def learn_behaviour(events: pl.DataFrame, n_items: int, config: RecommenderConfig) -> dict[str, sp.csr_matrix]:
    """The item neighbours that are asked for and fit, from events in any order."""
    histories = histories_of(events)
    found = {}
    if config.retriever.covisitation:
        found["covisitation"] = covisitation(histories, n_items, config.covisitation)
    weights = ease(histories, n_items, config.ease) if config.retriever.ease else None
    if weights is not None:
        found["ease"] = weights
    return found


def candidate_frame(
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
) -> pl.DataFrame:
    """Retrieve for every user and describe each candidate: stage-1 scores, interest score, behavioural features.

    Returns:
        `user_row`, `item_row`, `stage1_score`, `<source>_score`, `<source>_rank`, `interest_score`, `interest_rank` and
        the columns of `ranking.features.build_features`.
    """
    candidates = snapshot.retriever.retrieve(
        people.histories, blocked=blocked, hide_seen=hide_seen, n_candidates=n_candidates, progress=progress
    )
    frame = to_frame(candidates)
    if interest is not None:
        frame = add_interest(frame, people, interest, catalogue, config, progress=progress)
    frame = build_features(frame, people.history, snapshot.statistics, people.moments, config.features)
    return frame if people.numbers is None else frame.join(people.numbers, on="user_row", how="left")


def to_frame(candidates: Candidates) -> pl.DataFrame:
    """Candidate arrays as a frame; a source that did not propose an item has a null rank."""
    columns = {"user_row": candidates.users.astype(np.int32), "item_row": candidates.items.astype(np.int32)}
    frame = pl.DataFrame(columns).with_columns(stage1_score=pl.Series(candidates.blend))
    named = {}
    for column, name in enumerate(candidates.sources):
        named[f"{name}_score"] = pl.Series(np.ascontiguousarray(candidates.scores[:, column]))
        named[f"{name}_rank"] = pl.Series(np.ascontiguousarray(candidates.ranks[:, column])).fill_nan(None)
    return frame.with_columns(**named)


def add_interest(
    frame: pl.DataFrame,
    people: People,
    interest: InterestModel,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    progress: bool = False,
) -> pl.DataFrame:
    """Score the best `n_interest` candidates of each user with history; the others get null."""
    texts = history_texts(people, catalogue)
    place = pl.int_range(pl.len()).over("user_row")
    known = pl.col("user_row").is_in([row for row, text in enumerate(texts) if text])
    chosen = frame.filter((place < config.n_interest) & known).select("user_row", "item_row")
    scores = interest.score(
        [texts[row] for row in chosen["user_row"]],
        [catalogue.short_text_of(row) for row in chosen["item_row"]],
        progress=progress,
    )
    chosen = chosen.with_columns(interest_score=pl.Series(scores)).with_columns(
        interest_rank=pl.col("interest_score").rank("min", descending=True).over("user_row").cast(pl.Float32)
    )
    return frame.join(chosen, on=["user_row", "item_row"], how="left", maintain_order="left")


def history_texts(people: People, catalogue: Catalogue, *, newest: int = 20) -> list[str]:
    """One text for each user, made of the titles of his newest items; empty without history."""
    titles = catalogue.items["title"]
    histories = people.histories
    return [history_text(titles.gather(histories.of(user)[-newest:][::-1]).to_list()) for user in range(len(people))]


def _neighbour_sources(
    behaviour: Mapping[str, sp.csr_matrix],
    rows: npt.NDArray[np.int32],
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
) -> dict[str, NeighbourSource]:
    """From behaviour, words, categories where there are several and, where repeats are common, the user's own items."""
    n_items, depth = len(catalogue), config.retriever
    popularity = np.bincount(rows, minlength=n_items).astype(np.float32)
    words = lexical_neighbours(towers.text_neighbours, catalogue.text_rows, popularity, config.lexical)
    groups = catalogue.groups["category"].to_numpy().astype(np.int64)
    identity, power, lasting = np.arange(n_items), depth.history_power, depth.lasting_power
    powers = {"covisitation": power, "ease": lasting}
    sources = {
        name: NeighbourSource(matrix, identity, depth.neighbour_length, powers[name])
        for name, matrix in behaviour.items()
    }
    sources["lexical"] = NeighbourSource(words, catalogue.text_rows, depth.lexical_length, power)
    if depth.category and len(np.unique(groups)) > 1:
        recent = recent_counts(rows, n_items, depth.recent_share)
        trending = group_neighbours(groups, recent, per_group=depth.category)
        sources["category"] = NeighbourSource(trending, groups, depth.history_length, lasting)
    if repeats:
        itself = sp.eye_array(n_items, dtype=np.float32, format="csr")
        sources["repeat"] = NeighbourSource(itself, identity, depth.history_length, power)
    return sources
