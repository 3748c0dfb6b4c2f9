"""From what a caller asks for to rows: who is asked about, what is known of him, and what may be shown.

Owns the request side of `recsys/recommender.py`, as plain functions over a fit. What is done with the rows is
`recsys/lists.py`.
"""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.arguments import check_on_unknown, id_series
from recsys.catalogue import Catalogue
from recsys.errors import InvalidData, UnknownUsers
from recsys.fitted import Fitted
from recsys.snapshot import People, Timelines, places_of

log = logging.getLogger("recsys")


def user_ids(state: Fitted, users: Iterable[Any]) -> pl.Series:
    """Ids as at fit, each once, in their order.

    Raises:
        InvalidData: ids of another type than at fit.
    """
    return id_series(users, "user_id", state.events.schema["user_id"]).unique(maintain_order=True)


def report_unknown(state: Fitted, ids: pl.Series, on_unknown: str) -> None:
    """Say or refuse, as asked, that some users have no history.

    Raises:
        InvalidConfig: another word than those of `OnUnknown`.
        UnknownUsers: with `on_unknown="raise"`.
    """
    check_on_unknown(on_unknown)
    if on_unknown == "fallback":
        return
    unknown = ids.filter(pl.Series(places_of(state.timelines.user_ids, ids) < 0))
    if unknown.is_empty():
        return
    if on_unknown == "raise":
        raise UnknownUsers(unknown.to_list())
    log.warning("%d users have no history and get what is popular, first: %s", len(unknown), unknown.head(5).to_list())


def known_people(state: Fitted, ids: pl.Series) -> People:
    """Users as of now, from what was known at fit."""
    return _as_of_now(state, state.timelines, ids)


def people_of(state: Fitted, events: pl.DataFrame, ids: pl.Series) -> People:
    """Users as of now, from other events.

    Args:
        state: the fit.
        events: `user_id`, `item_row`, `seconds`, `event_row`.
        ids: distinct, of the events' type.
    """
    return _as_of_now(state, Timelines.of(events), ids)


def _as_of_now(state: Fitted, timelines: Timelines, ids: pl.Series) -> People:
    """Users as of the fit's `as_of`, or just after their own last event where that is later.

    With windows of kind "last" it is always the latter, as it was at training.
    """
    ends = timelines.ends(ids) + 1.0
    moments = np.where(np.isnan(ends), state.as_of, ends)
    if state.window_kind != "last":
        moments = np.maximum(moments, state.as_of)
    numbers = state.user_numbers
    if numbers is not None and numbers.schema["user_id"] != ids.dtype:  # strangers of another kind of id
        numbers = numbers.clear().cast({"user_id": ids.dtype})
    return timelines.people(ids, pl.Series(moments), numbers)


def ending_now(state: Fitted, events: pl.DataFrame) -> pl.DataFrame:
    """Histories whose times carry only order, moved so that each ends just before `as_of`."""
    shift = state.as_of - 1.0 - pl.col("seconds").max().over("user_id")
    return events.with_columns(seconds=pl.col("seconds") + shift)


def blocked_items(
    catalogue: Catalogue, allow_items: Iterable[Any] | None, deny_items: Iterable[Any] | None
) -> npt.NDArray[np.bool_]:
    """Items that nobody may be shown, bool (n_items,).

    Raises:
        InvalidData: see `item_rows`.
    """
    blocked = ~catalogue.available
    if allow_items is not None:
        allowed = np.zeros(len(blocked), dtype=np.bool_)
        allowed[item_rows(catalogue, allow_items, "allow_items")] = True
        blocked = blocked | ~allowed
    if deny_items is not None:
        blocked[item_rows(catalogue, deny_items, "deny_items")] = True
    return blocked


def item_rows(catalogue: Catalogue, items: Iterable[Any], name: str) -> npt.NDArray[np.int64]:
    """Rows of item ids, int64, in their order; `name` is what messages call them.

    Raises:
        InvalidData: ids of another type than at fit, or one that is not in the catalogue.
    """
    ids = id_series(items, name, catalogue.items.schema["item_id"])
    rows = catalogue.rows_of(ids)
    if (rows < 0).any():
        unknown = ids.filter(pl.Series(rows < 0))
        raise InvalidData(
            table=name,
            column="item_id",
            rule="names items that are not in the catalogue",
            count=len(unknown),
            rows=unknown.head(5).to_list(),
            remedy="leave them out or fit with an items table that has them",
        )
    return rows
