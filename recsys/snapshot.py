"""Both stages as of one moment: what is known about items and users then.

Training and serving build the same snapshot from the interactions known at their moment and ask it in the same way,
so that a feature or a score means the same in both. Fitting models is `recsys/pipeline.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from indexing.ease import ease
from indexing.history import Histories
from indexing.lexical import lexical_neighbours
from indexing.lookalikes import lookalikes, near_taken, untaken_texts
from indexing.retriever import Retriever, build_retriever, recent_counts
from indexing.sources import LookalikeSource, NeighbourSource, Source
from indexing.trending import group_neighbours
from ranking.features import ItemTable, item_statistics
from ranking.similarity import NeighbourSpace, Space, VectorSpace
from ranking.statistics import DAY
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
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


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is known about the items at a moment. Sources, statistics and spaces are made when first asked for.

    Attributes:
        events: `user_id`, `item_row`, `seconds`, `event_row`, in order of time.
        moment: Unix seconds, later than every event.
        towers: trained before.
        catalogue: the items.
        config: depths, windows, neighbours.
        behaviour: item neighbours learnt from behaviour, float32 CSR (n_items, n_items): "covisitation", "ease".
        repeats: whether the user's own items are a source.
        news: whether items that nobody took yet are a source.
        clock: whether users have moments of their own, so that hour and weekday say something about them.
        weights: of the sources in the blend.
    """

    events: pl.DataFrame
    moment: float
    towers: Towers
    catalogue: Catalogue
    config: RecommenderConfig
    behaviour: Mapping[str, sp.csr_matrix]
    repeats: bool
    news: bool
    clock: bool = False
    weights: Mapping[str, float] | None = None

    @cached_property
    def retriever(self) -> Retriever:
        """The sources."""
        towers = self.towers
        return build_retriever(
            self.config.retriever, encoder=towers.history_encoder, item_vectors=towers.item_vectors,
            index=towers.index, searchable=towers.searchable, neighbours=self._neighbour_sources(),
            rows=self.events["item_row"].to_numpy(), weights=self.weights, item_weights={"lookalike": self._of_new()},
            new=self.popularity <= 0.0 if self.news else None,
        )  # fmt: skip

    @cached_property
    def statistics(self) -> pl.DataFrame:
        """Behavioural features of every item."""
        return item_table(self.events, self.moment, self.catalogue, self.config, kinds=self.kinds, clock=self.clock)

    @cached_property
    def table(self) -> ItemTable:
        """The same as arrays."""
        return ItemTable.of(self.statistics)

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """What candidates are compared with histories by."""
        towers, catalogue, every = self.towers, self.catalogue, np.arange(len(self.catalogue))
        spaces: dict[str, Space] = {
            "vector": VectorSpace(towers.item_vectors, np.where(towers.searchable, every, -1)),
            "text": VectorSpace(towers.text_vectors, np.where(catalogue.has_text, catalogue.text_rows, -1)),
        }
        if "covisitation" in self.behaviour:
            spaces["covisitation"] = NeighbourSpace(self.behaviour["covisitation"])
        return spaces

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of events, by `event_row`."""
        return self.towers.event_kinds if len(self.towers.event_kinds) <= MAX_KINDS else ()

    def ready(self) -> Self:
        """The same, with all of it made, so that no request waits."""
        _ = self.retriever, self.table, self.spaces
        return self

    def weighted(self, weights: Mapping[str, float]) -> Self:
        """The same with other worths of the sources in the blend; what is made stays made."""
        made = replace(self, weights=weights)
        vars(made).update({**vars(self), "weights": weights, "retriever": self.retriever.weighted(weights)})
        return made

    def _neighbour_sources(self) -> dict[str, Source]:
        """From behaviour, words, categories where there are several and, where repeats are common, the user's own."""
        catalogue, depth, rows = self.catalogue, self.config.retriever, self.events["item_row"].to_numpy()
        n_items, popularity = len(catalogue), self.popularity
        words = lexical_neighbours(self.towers.text_neighbours, catalogue.text_rows, popularity, self.config.lexical)
        groups = catalogue.groups["category"].to_numpy().astype(np.int64)
        identity, power, lasting = np.arange(n_items), depth.history_power, depth.lasting_power
        powers = {"covisitation": power, "ease": lasting}
        sources: dict[str, Source] = {
            name: NeighbourSource(matrix, identity, depth.neighbour_length, powers[name])
            for name, matrix in self.behaviour.items()
        }
        sources["lexical"] = NeighbourSource(words, catalogue.text_rows, depth.lexical_length, power)
        if depth.lookalike and "covisitation" in self.behaviour:
            company = NeighbourSource(self.behaviour["covisitation"], identity, depth.lexical_length, power)
            sources["lookalike"] = LookalikeSource(company, catalogue.text_rows, self._lookalikes())
        if depth.category and len(np.unique(groups)) > 1:
            recent = recent_counts(rows, n_items, depth.recent_share)
            trending = group_neighbours(groups, recent, per_group=depth.category)
            sources["category"] = NeighbourSource(trending, groups, depth.history_length, lasting)
        if self.repeats:
            itself = sp.eye_array(n_items, dtype=np.float32, format="csr")
            sources["repeat"] = NeighbourSource(itself, identity, depth.history_length, power)
        return sources

    @cached_property
    def popularity(self) -> npt.NDArray[np.float32]:
        """How often each item was taken, (n_items,)."""
        return np.bincount(self.events["item_row"].to_numpy(), minlength=len(self.catalogue)).astype(np.float32)

    def _lookalikes(self) -> sp.csr_matrix:
        """Which items listen to which texts, by words and, where nobody took them, by item vectors."""
        towers, text_rows, settings = self.towers, self.catalogue.text_rows, self.config.lexical
        near = near_taken(
            towers.index, towers.item_vectors, towers.searchable & self.catalogue.has_text, text_rows, self.popularity,
            len(self.catalogue.texts), settings.n_lookalikes,
        )  # fmt: skip
        return lookalikes(towers.text_neighbours, near, text_rows, self.popularity, settings)

    def _of_new(self) -> npt.NDArray[np.float32]:
        """How many times its weight `lookalike` has for each item, (n_items,)."""
        text_rows = self.catalogue.text_rows
        new = untaken_texts(text_rows, self.popularity, len(self.catalogue.texts))[text_rows]
        return np.where(new, np.float32(self.config.retriever.lookalike_of_new), np.float32(1.0))


def take_snapshot(
    events: pl.DataFrame,
    moment: float,
    towers: Towers,
    catalogue: Catalogue,
    config: RecommenderConfig,
    *,
    repeats: bool,
    news: bool,
    with_ease: bool,
    clock: bool = False,
    weights: Mapping[str, float] | None = None,
    covisited: sp.csr_matrix | None = None,
    known_behaviour: Mapping[str, sp.csr_matrix] | None = None,
) -> Snapshot:
    """Learn from all interactions before the moment, and make sources and item statistics ready.

    Args:
        events, moment, towers, catalogue, config, repeats, news, clock, weights: as for `Snapshot`.
        with_ease: whether EASE is among the neighbours learnt from behaviour.
        covisited: the co-visitation of the same events, where it is there already.
        known_behaviour: the matrices of the same events, where they were stored.
    """
    behaviour = known_behaviour
    if behaviour is None:
        behaviour = learn_behaviour(events, catalogue, config, covisited, with_ease=with_ease)
    return Snapshot(
        events=events, moment=moment, towers=towers, catalogue=catalogue, config=config, behaviour=behaviour,
        repeats=repeats, news=news, clock=clock, weights=weights,
    ).ready()  # fmt: skip


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


def learn_behaviour(
    events: pl.DataFrame,
    catalogue: Catalogue,
    config: RecommenderConfig,
    covisited: sp.csr_matrix | None,
    *,
    with_ease: bool,
) -> dict[str, sp.csr_matrix]:
    """The item neighbours that are asked for, from events in any order."""
    found = {}
    if config.retriever.covisitation:
        found["covisitation"] = covisitation_of(events, catalogue, config) if covisited is None else covisited
    if with_ease:
        found["ease"] = ease(histories_of(events), len(catalogue), config.ease)
    return found
