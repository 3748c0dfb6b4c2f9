"""Changes between two rebuilds: new, changed and deleted items, newer interactions, deleted people; nothing is trained.

Owns how a changed fit is made from another one. Each function returns a new `Fitted` and leaves the one it is given as
it is, so that whoever serves swaps one reference and no answer mixes two states. A rebuild starts from its own tables:
what is changed here must be changed there too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from indexing.exact import ExactIndex
from indexing.index import (
    FloatArray,
    Hits,
    IndexConfig,
    Mask,
    RowArray,
    VectorIndex,
    build_index,
    grown,
    guarded_search,
    mark_deleted,
)
from recsys.arguments import id_series
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.errors import InvalidData
from recsys.events import strange_kinds, to_events
from recsys.fitted import Fitted
from recsys.rebuild.current import utc
from recsys.rebuild.refresh import carried_items, carried_vectors
from recsys.requests import item_rows
from recsys.schema import Table, validate, validate_items
from recsys.towers import histories_of, likely_queries

log = logging.getLogger("recsys")

CLOCK_SKEW = timedelta(minutes=1)  # by which the clock of another machine may be ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionReceipt:
    """What was removed with some people.

    Attributes:
        users: people asked for.
        unknown: of them, those of whom nothing was stored.
        interactions: rows of interactions removed.
        attributes: rows of the users table removed.
    """

    users: int
    unknown: int
    interactions: int
    attributes: int


class DeltaIndex:
    """A main index, and beside it an exact one over the rows that are newer than it.

    Args:
        main: over the first rows; it is not changed.
        vectors: float32 (n, d), unit length, of all rows.
        newer: int64, ascending: rows that `main` lacks or holds an older vector of.
        config: of the index that `save` builds over everything.
    """

    engine = "torch"
    recall: float | None = None

    def __init__(self, main: VectorIndex, vectors: FloatArray, newer: RowArray, config: IndexConfig) -> None:
        self.main, self.vectors, self.newer, self._config = main, vectors, newer, config
        self.kind, self.device, self.setting = main.kind, main.device, main.setting
        self.size, self.dim = vectors.shape
        self.deleted: Mask = np.zeros(self.size, dtype=np.bool_)
        self._delta = ExactIndex(vectors[newer], device=main.device)

    @property
    def bytes_per_item(self) -> int:
        """Memory of a vector in the main index."""
        return self.main.bytes_per_item

    def search(self, queries: FloatArray, k: int, *, allowed: Mask | None = None) -> Hits:
        """The best rows of each query; see `VectorIndex.search`."""
        return guarded_search(self._search, self, queries, k, allowed)

    def add(self, vectors: FloatArray) -> None:
        """Append rows; see `VectorIndex.add`."""
        rows, deleted = np.arange(self.size, self.size + len(vectors)), grown(self.deleted, len(vectors))
        self.__init__(  # type: ignore[misc]
            self.main, np.concatenate([self.vectors, vectors]), np.concatenate([self.newer, rows]), self._config
        )
        self.deleted = deleted

    def delete(self, rows: RowArray) -> None:
        """Hide rows for good; see `VectorIndex.delete`."""
        mark_deleted(self.deleted, rows)

    def save(self, folder: Path) -> None:
        """Write one index over everything, made without knowing any user; see `settled`."""
        self.whole().save(folder)

    def whole(self, queries: Callable[[], FloatArray] | None = None) -> VectorIndex:
        """One index over everything; `queries` as for `build_index`."""
        index = build_index(self.vectors, self._config, device=self.device, queries=queries)
        index.delete(np.flatnonzero(self.deleted))
        return index

    def _search(self, queries: FloatArray, k: int, allowed: Mask | None) -> Hits:
        allowed = np.ones(self.size, dtype=np.bool_) if allowed is None else allowed
        old = allowed.copy()
        old[self.newer] = False
        rows, scores = self.main.search(queries, k, allowed=old[: self.main.size])
        places, near = self._delta.search(queries, k, allowed=allowed[self.newer])
        found = np.where(places >= 0, self.newer[places], -1)
        rows, scores = np.concatenate([rows, found], axis=1), np.concatenate([scores, near], axis=1)
        order = np.lexsort((np.where(rows < 0, self.size, rows), -scores))[:, :k]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def settled(state: Fitted, config: RecommenderConfig) -> Fitted:
    """The same with one index over everything, fitted to the users there are now: the delta ends with a save."""
    towers, index = state.towers, state.towers.index
    if not isinstance(index, DeltaIndex):
        return state

    def queries() -> FloatArray:
        histories = histories_of(state.events)
        return likely_queries(histories, towers.history_encoder, index.vectors, seed=config.seed)

    return replace(state, towers=replace(towers, index=index.whole(queries)))


def upsert_items(state: Fitted, items: Table, config: RecommenderConfig) -> Fitted:
    """Add items, and replace those whose id is known; they are in every source of vectors at once.

    Args:
        state: a fit.
        items: with the columns of the items table at fit; an item that was deleted comes back.
        config: of the fit.

    Raises:
        InvalidData: the table breaks a rule, or lacks a column of the fit.
    """
    old = state.catalogue.items
    given = validate_items(items, like=old.schema)
    for name, kind in old.schema.items():
        if (found := given.schema.get(name)) != kind:
            raise InvalidData(
                table="items", column=name, rule=f"must be {kind}, as at the fit, but is {found or 'missing'}",
                remedy="give every column of the items table at the fit",
            )  # fmt: skip
    given = given.select(old.columns)
    changed = old.select("item_id").join(given, on="item_id", how="left", maintain_order="left").select(old.columns)
    mine = old["item_id"].is_in(given["item_id"].implode())
    kept = pl.concat([old.with_row_index("at").filter(~mine), changed.with_row_index("at").filter(mine)])
    fresh = given.join(old.select("item_id"), on="item_id", how="anti")
    merged = pl.concat([kept.sort("at").drop("at"), fresh])
    catalogue = Catalogue.of(merged, ignore_columns=config.ignore_columns, group_columns=state.catalogue.group_columns)
    vectors, _ = carried_vectors(state, catalogue.texts)
    tower, item_vectors, searchable = carried_items(state, catalogue, vectors, state.events["item_row"].to_numpy())
    touched = np.flatnonzero(catalogue.items["item_id"].is_in(given["item_id"].implode()).to_numpy())
    others = np.setdiff1d(np.arange(old.height), touched)  # whose vectors the index holds
    item_vectors[others], searchable[others] = state.towers.item_vectors[others], state.towers.searchable[others]
    index = state.towers.index
    main, newer = (index.main, np.union1d(index.newer, touched)) if isinstance(index, DeltaIndex) else (index, touched)
    towers = replace(
        state.towers, item_tower=tower, text_vectors=vectors, item_vectors=item_vectors, searchable=searchable,
        index=DeltaIndex(main, item_vectors, newer, config.index),
        text_neighbours=_moved_neighbours(state, catalogue),
    )  # fmt: skip
    wider = {name: _widened(matrix, len(catalogue)) for name, matrix in state.snapshot.behaviour.items()}
    return replace(state, catalogue=catalogue, towers=towers).renewed(config, wider)


def delete_items(state: Fitted, ids: Iterable[Any]) -> Fitted:
    """Never show these items again; histories keep them, for what they say about people.

    Raises:
        InvalidData: an id that is not in the catalogue.
    """
    rows = item_rows(state.catalogue, ids, "items")
    available = state.catalogue.available.copy()
    available[rows] = False
    items = state.catalogue.items.with_columns(available=pl.Series(available))
    return replace(state, catalogue=replace(state.catalogue, items=items, available=available))


def delete_users(state: Fitted, ids: Iterable[Any], config: RecommenderConfig) -> tuple[Fitted, DeletionReceipt]:
    """Remove people: their interactions, attributes, what both added to counts and neighbours, and remembered scores.

    Raises:
        InvalidData: ids of another type than at fit, or nobody would be left.
    """
    wanted = id_series(ids, "user_id", state.events.schema["user_id"]).unique()
    gone = state.events["user_id"].is_in(wanted.implode())
    events = state.events.filter(~gone)
    if events.is_empty():
        raise InvalidData(table="users", rule="names everybody", remedy="remove the whole model instead")
    users = state.users
    if users is not None:
        users = users.filter(~users["user_id"].is_in(wanted.implode()))
    stored = set(state.events.filter(gone)["user_id"].unique())
    if state.users is not None:
        stored |= set(state.users.filter(state.users["user_id"].is_in(wanted.implode()))["user_id"])
    receipt = DeletionReceipt(
        users=len(wanted),
        unknown=len(wanted) - len(stored),
        interactions=int(gone.sum()),
        attributes=0 if state.users is None or users is None else state.users.height - users.height,
    )
    if not stored:
        return state, receipt
    if state.interest is not None:
        state.interest.forget()  # scores of their histories lie among the others
    return replace(state, events=events, users=users).renewed(config, None), receipt


def update_interactions(state: Fitted, interactions: Table, config: RecommenderConfig, now: datetime) -> Fitted:
    """Add newer interactions to the histories and counts; an interaction that is known already changes nothing.

    Neighbours from behaviour stay as they were: the next rebuild learns them anew.

    Args:
        state: a fit.
        interactions: what was done since, or more.
        config: of the fit.
        now: aware. One row of a wrong clock would make everything else look years old.

    Raises:
        InvalidData: the table breaks a rule, a new row lies more than `CLOCK_SKEW` after now, ids are of another
            type than at fit, or no item is known.
    """
    tables = validate(interactions, state.catalogue.items, unknown_items=config.unknown_items)
    kind, found = state.events.schema["user_id"], tables.interactions.schema["user_id"]
    if kind != found:
        raise InvalidData(
            table="interactions", column="user_id", rule=f"is {found}, the model was fitted with {kind}",
            remedy="spell the ids as at the fit",
        )  # fmt: skip
    if sentence := strange_kinds(tables.interactions, state.towers.event_kinds):
        log.warning(sentence)
    given = to_events(tables.interactions, state.catalogue, state.towers.event_kinds)
    same = ["user_id", "item_row", "seconds", "event_row"]
    added = given.unique(maintain_order=True).join(state.events, on=same, how="anti")
    late = added["seconds"].filter(added["seconds"] > (utc(now, "now") + CLOCK_SKEW).timestamp())
    if len(late):
        last = datetime.fromtimestamp(cast(float, late.max()), UTC)
        raise InvalidData(
            table="interactions", column="timestamp", rule=f"must not lie after now, {now}, as {last} does",
            count=len(late), total=added.height,
            remedy="check time zone and unit of the timestamps and the clock",
        )  # fmt: skip
    events = pl.concat([state.events, added.select(state.events.columns)]).sort("seconds", maintain_order=True)
    as_of = max(state.as_of, float(events["seconds"][-1]) + 1.0)
    return replace(state, events=events, as_of=as_of).renewed(config, state.snapshot.behaviour)


def _widened(matrix: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """The same entries in (n, n)."""
    indptr = np.concatenate([matrix.indptr, np.full(n - matrix.shape[0], matrix.indptr[-1], dtype=matrix.indptr.dtype)])
    return sp.csr_matrix((matrix.data, matrix.indices, indptr), shape=(n, n))


def _moved_neighbours(state: Fitted, catalogue: Catalogue) -> sp.csr_matrix:
    """Lexical neighbours by the new numbers of the texts; a new text has none before the next rebuild."""
    places = {text: row for row, text in enumerate(catalogue.texts)}
    rows: npt.NDArray[np.int64] = np.array([places.get(text, -1) for text in state.catalogue.texts], dtype=np.int64)
    old = state.towers.text_neighbours.tocoo()
    kept = (rows[old.row] >= 0) & (rows[old.col] >= 0)
    n = len(catalogue.texts)
    entries = (old.data[kept], (rows[old.row[kept]], rows[old.col[kept]]))
    made = sp.csr_matrix(entries, shape=(n, n), dtype=np.float32)
    made.sort_indices()
    return made
