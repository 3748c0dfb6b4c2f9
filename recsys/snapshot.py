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

from indexing.ease import ease
from indexing.history import Histories
from indexing.lexical import lexical_neighbours
from indexing.retriever import Candidates, Retriever, build_retriever, recent_counts
from indexing.sources import NeighbourSource
from indexing.sparse import place_in_runs
from indexing.trending import group_neighbours
from ranking.features import Columns, ItemTable, build_features, item_statistics
from ranking.interest import InterestModel
from ranking.similarity import NeighbourSpace, Space, VectorSpace, add_similarity
from ranking.statistics import DAY
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.text import history_text
from recsys.towers import Towers, covisitation_of, histories_of

MAX_KINDS = 8  # more kinds of events than that are no kinds; their rates are left out


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
        if start == 0 and stop >= len(self):
            return self
        shifted = pl.col("user_row") - pl.lit(start, dtype=pl.Int32)
        first, last = self.histories.offsets[[start, min(stop, len(self))]]
        numbers = None if self.numbers is None else self.numbers[start:stop].with_columns(shifted)
        return People(
            self.history[int(first) : int(last)].with_columns(shifted),
            self.moments[start:stop].with_columns(shifted),
            numbers,
        )


@dataclass(frozen=True, slots=True)
class Timelines:
    """Everybody's events user by user, so that a request reads only those of its own users.

    Attributes:
        user_ids: distinct, ascending.
        offsets: int64 (n_users + 1,), where each user's events begin and end.
        events: `item_row`, `seconds`, `event_row`; by user, then time, then item.
    """

    user_ids: pl.Series
    offsets: npt.NDArray[np.int64]
    events: pl.DataFrame

    @classmethod
    def of(cls, events: pl.DataFrame) -> "Timelines":
        """From `user_id`, `item_row`, `seconds`, `event_row` in any order."""
        ordered = events.sort("user_id", "seconds", "item_row", maintain_order=True)
        runs = ordered["user_id"].rle().struct
        offsets = np.concatenate([[0], np.cumsum(runs.field("len").to_numpy())]).astype(np.int64)
        return cls(runs.field("value"), offsets, ordered.select("item_row", "seconds", "event_row"))

    def ends(self, user_ids: pl.Series) -> npt.NDArray[np.float64]:
        """When each user's last event was, float64 Unix seconds; NaN for a user without events."""
        rows = places_of(self.user_ids, user_ids)
        known = rows >= 0
        ends = np.full(len(rows), np.nan)
        ends[known] = self.events["seconds"].to_numpy()[self.offsets[rows[known] + 1] - 1]
        return ends

    def people(self, user_ids: pl.Series, moments: pl.Series | float, numbers: pl.DataFrame | None) -> People:
        """Number distinct users in the order given; see `gather_people`."""
        user_row = pl.int_range(len(user_ids), dtype=pl.Int32, eager=True).alias("user_row")
        known = None
        if numbers is not None:
            places = places_of(numbers["user_id"], user_ids)
            rows = pl.select(pl.when(pl.lit(pl.Series(places)) >= 0).then(pl.lit(pl.Series(places)))).to_series()
            known = numbers.drop("user_id").select(pl.all().gather(rows)).insert_column(0, user_row)
        return People(self._history(user_ids), user_row.to_frame().with_columns(moment=moments), known)

    def _history(self, user_ids: pl.Series) -> pl.DataFrame:
        """Histories of distinct users in the order given: `user_row`, `item_row`, `seconds`, `event_row`."""
        rows = places_of(self.user_ids, user_ids)
        known = np.flatnonzero(rows >= 0)
        starts = self.offsets[rows[known]]
        lengths = self.offsets[rows[known] + 1] - starts
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
        user_row = pl.Series("user_row", np.repeat(known, lengths).astype(np.int32))
        history: pl.DataFrame = self.events[places].insert_column(0, user_row)
        return history


def places_of(ordered: pl.Series, wanted: pl.Series) -> npt.NDArray[np.int64]:
    """Where each wanted value lies in an ascending series without repetitions, int64; -1 where it does not."""
    if ordered.is_empty():
        return np.full(len(wanted), -1, dtype=np.int64)
    found = np.minimum(ordered.search_sorted(wanted).to_numpy(), len(ordered) - 1).astype(np.int64)
    return np.where((ordered[found] == wanted).to_numpy(), found, -1)


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
        numbers: `user_id`, ascending, and Float32 columns, or None.
    """
    mine = events.join(user_ids.alias("user_id").to_frame(), on="user_id", how="semi")
    return Timelines.of(mine).people(user_ids, moments, numbers)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known about the items at a moment.

    Attributes:
        retriever: the sources.
        statistics: behavioural features of every item.
        table: the same as arrays.
        behaviour: item neighbours learnt from behaviour, float32 CSR (n_items, n_items): "covisitation", "ease".
        spaces: what candidates are compared with histories by.
        kinds: names of the kinds of events, by `event_row`.
    """

    retriever: Retriever
    statistics: pl.DataFrame
    table: ItemTable
    behaviour: Mapping[str, sp.csr_matrix]
    spaces: Mapping[str, Space]
    kinds: tuple[str, ...]


def take_snapshot(
    events: pl.DataFrame,
    moment: float,
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
    clock: bool = False,
    weights: Mapping[str, float] | None = None,
    covisited: sp.csr_matrix | None = None,
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
        clock: whether users have moments of their own, so that hour and weekday say something about them.
        weights: of the sources in the blend.
        covisited: the co-visitation of the same events, where it is there already.
        known_behaviour: the matrices of the same events, where they were stored.
    """
    behaviour = known_behaviour
    if behaviour is None:
        behaviour = learn_behaviour(events, catalogue, config, covisited)
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
    kinds = towers.event_kinds if len(towers.event_kinds) <= MAX_KINDS else ()
    statistics = item_table(events, moment, catalogue, config, kinds=kinds, clock=clock)
    table, spaces = ItemTable.of(statistics), _spaces(behaviour, towers, catalogue)
    return Snapshot(retriever, statistics, table, behaviour, spaces, kinds)


def item_table(
    events: pl.DataFrame,
    moment: float,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    kinds: tuple[str, ...],
    clock: bool,
) -> pl.DataFrame:
    """What is known about each item: what was done with it, its age where that is given, and its numeric columns."""
    numbered = events.with_columns(user_row=pl.col("user_id").rank("dense"))
    counted = item_statistics(numbered, catalogue.groups, moment, config.features, kinds=kinds, clock=clock)
    numbers = catalogue.numbers.drop("item_row")
    created = catalogue.items["created_at"]
    if created.null_count() < len(created):
        age = ((moment - created.dt.epoch("us") / 1e6) / DAY).cast(pl.Float32)
        numbers = numbers.with_columns(pl.select(item_age_days=pl.when(age >= 0).then(age)).to_series())
    return pl.concat([counted, numbers], how="horizontal")


def _spaces(behaviour: Mapping[str, sp.csr_matrix], towers: Towers, catalogue: Catalogue) -> dict[str, Space]:
    """Item vectors, text vectors and, where it is learnt, covisitation."""
    every = np.arange(len(catalogue))
    spaces: dict[str, Space] = {
        "vector": VectorSpace(towers.item_vectors, np.where(towers.searchable, every, -1)),
        "text": VectorSpace(towers.text_vectors, np.where(catalogue.has_text, catalogue.text_rows, -1)),
    }
    if "covisitation" in behaviour:
        spaces["covisitation"] = NeighbourSpace(behaviour["covisitation"])
    return spaces


def learn_behaviour(
    events: pl.DataFrame, catalogue: Catalogue, config: RecommenderConfig, covisited: sp.csr_matrix | None
) -> dict[str, sp.csr_matrix]:
    """The item neighbours that are asked for and fit, from events in any order."""
    found = {}
    if config.retriever.covisitation:
        found["covisitation"] = covisitation_of(events, catalogue, config) if covisited is None else covisited
    weights = ease(histories_of(events), len(catalogue), config.ease) if config.retriever.ease else None
    if weights is not None:
        found["ease"] = weights
    return found


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
        `user_row`, `item_row`, `stage1_score`, `<source>_score`, `<source>_rank`, `interest_score`, `interest_rank` and
        what `ranking.features.build_features` and `ranking.similarity.add_similarity` add.
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
    """Add interest score and behavioural features to candidates, which lie best first for each user."""
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
    for row, name in enumerate(candidates.sources):
        named |= {f"{name}_score": scores[row], f"{name}_rank": ranks[row]}
    return named


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
