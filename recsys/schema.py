"""The tables at the door: their columns and rules, checked once, here.

Behind this module everybody works on polars frames in one canonical form:

* interactions: `user_id`, `item_id` (String or Int64), `timestamp` (Datetime us, UTC), `event` (String,
  "interaction"), `value` (Float64, null), `weight` (Float64, 1.0), and `session_id` (String or Int64) where given.
* items: `item_id`, `title`, `description` (String, ""), `categories` (List(String), []), `price` (Float64,
  null), `created_at` (Datetime us UTC, null), `available` (Boolean, true), then further columns as features.
* users: `user_id`, then further columns as features.

In brackets: the dtype, and what stands in for a missing value. Features are Int64, Float64, Boolean or String.
Rows are sorted by content, so that the order of the input rows never matters. Owns the rules that concern more than
one column; foreign names are `aliases`', reading is `tables`', the values of one column are `columns`', the composition
of texts is `text`'s.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, TypeAlias

import narwhals as nw
import polars as pl
from polars.exceptions import PolarsError

from recsys import columns, tables
from recsys.aliases import ALIASES, ID_NAMES, TIME_ALIASES, canonical_names
from recsys.columns import normalise_timestamps
from recsys.errors import InvalidConfig, InvalidData
from recsys.notes import Notes
from recsys.tables import Table, to_caller

__all__ = [
    "Histories",
    "Table",
    "Tables",
    "normalise_timestamps",
    "read_table",
    "to_caller",
    "validate",
    "validate_histories",
    "validate_items",
]

Histories: TypeAlias = Table | Mapping[Any, Sequence[Any]]
"""An interactions table (`timestamp` optional), or a mapping from user id to item ids, oldest first."""

EPOCH = date(1970, 1, 1)
INTERACTION_COLUMNS = ("timestamp", "user_id", "item_id", "event", "value", "weight", "session_id")
"""In the order in which rows are sorted."""

ITEM_COLUMNS = ("item_id", "title", "description", "categories", "price", "created_at", "available")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The validated tables in canonical form (see the module docstring).

    Attributes:
        interactions: at least one row; every `item_id` is in `items`. Sorted by time, then the other columns.
        items: one row an item, sorted by `item_id`.
        users: one row a user, sorted by `user_id`; None where the caller gave no such table.
        notes: what was mapped, dropped, ignored or filled in, as sentences.
        implementation: the frame library of the caller's interactions; polars for paths.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None
    notes: tuple[str, ...]
    implementation: nw.Implementation


def fingerprint(tables: Tables, also: object) -> str:
    """sha256 (64 hex digits) of the tables' content in canonical form, and of `also`; row order does not matter.

    Rows are hashed by their values: how they lie in memory depends on the file that they came from.
    """
    digest = hashlib.sha256(str(also).encode())
    for frame in (tables.interactions, tables.items, tables.users):
        if frame is not None:
            digest.update(repr(frame.schema).encode())
            digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def read_table(source: Table, name: str) -> pl.DataFrame:
    """Reads a table as it is, without any check of its content.

    Args:
        source: a frame or a path, see `Table`.
        name: what messages call the table, for example "items".

    Returns:
        A polars frame with the columns and rows of `source`. Id columns of a CSV file are integers only where
        every value is spelt as one, so that "007" stays "007".

    Raises:
        InvalidData: the path is missing or of an unknown kind, the type is not a table, or it cannot be read.
    """
    return tables.read_table(source, name, csv_text_columns=ID_NAMES)


def validate(
    interactions: Table,
    items: Table,
    users: Table | None = None,
    *,
    unknown_items: Literal["drop", "raise"] = "drop",
    now: datetime | None = None,
) -> Tables:
    """Checks the caller's tables and brings them into canonical form.

    Args:
        interactions: who did what with which item, when.
        items: the catalogue.
        users: further columns about users, where there are any; not necessarily the users of `interactions`.
        unknown_items: what happens to interactions whose item is not in `items`.
        now: aware; interactions after it are noted. None notes nothing.

    Returns:
        The tables; each of their notes is logged as well (INFO, and WARNING for dropped rows).

    Raises:
        InvalidData: a table breaks a rule.
        InvalidConfig: `unknown_items` is neither of the two words.
    """
    if unknown_items not in ("drop", "raise"):
        raise InvalidConfig(f'unknown_items must be "drop" or "raise", not {unknown_items!r}.')
    notes = Notes(())
    given = _not_empty(read_table(interactions, "interactions"), "interactions")
    events = _interactions(given, "interactions", notes)
    catalogue = _items(read_table(items, "items"), notes)
    people = None if users is None else _users(read_table(users, "users"), notes)
    if people is not None:
        _same_id_type(events, "interactions", people, "users", "user_id")
    events = _known_items(events, "interactions", catalogue, unknown_items, notes)
    if events.is_empty():
        raise InvalidData(
            table="interactions",
            column="item_id",
            rule="no interaction is left after dropping those whose item is not in the items table",
            remedy="check that both tables spell their item ids alike",
        )
    if now is not None:
        _note_future(events["timestamp"], now, notes)
    return Tables(
        interactions=events,
        items=catalogue,
        users=people,
        notes=tuple(notes.sentences),
        implementation=tables.implementation_of(interactions),
    )


def validate_items(items: Table, like: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The items table alone in canonical form; raises as `validate` does.

    Few rows may hold nothing in a column, or whole numbers beside nulls: such columns are of the type they have in
    `like`, the schema of the items at the fit.
    """
    frame = read_table(items, "items")
    further = [name for name in frame.columns if name in like and name not in ("item_id", "title", *ITEM_COLUMNS)]
    return _items(frame.with_columns(columns.of_type(frame[name], like[name]) for name in further), Notes(()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenHistories:
    """Histories of people who need not have been there at fit.

    Attributes:
        interactions: in canonical form; where no times were given they start at 1970-01-01 and are one second apart.
        users: sorted ids of everybody who was named, also of those of whom no known item is left.
        timed: whether the times are the caller's; else they carry order and nothing else.
    """

    interactions: pl.DataFrame
    users: pl.Series
    timed: bool


def validate_histories(histories: Histories, items: pl.DataFrame) -> GivenHistories:
    """Checks the histories of people who need not have been there at fit.

    Args:
        histories: an interactions table whose `timestamp` may be missing (then the order of its rows is the
            order), or a mapping from user id to a sequence of item ids, oldest first.
        items: the canonical items table, as `validate` returned it.

    Returns:
        The histories; users of whom no known item is left have no interaction, so there may be none at all.

    Raises:
        InvalidData: the histories break a rule, or there are none.
    """
    notes = Notes(())
    if isinstance(histories, Mapping):
        given = tables.frame_of_histories(histories, items.schema["item_id"])
        users, timed = columns.ids(_named_users(histories), "user_id", table="histories"), False
        events = _interactions(given, "histories", notes)
    else:
        read = _not_empty(read_table(histories, "histories"), "histories")
        given = _with_order(read)
        events = _interactions(given, "histories", notes)
        users, timed = events["user_id"], given.width == read.width
    events = _known_items(events, "histories", items, "drop", notes)
    users = users.unique().sort()
    emptied = len(users) - events["user_id"].n_unique()
    if emptied:
        notes.add(f"histories: {emptied:,} of {len(users):,} users have no known item.", level=logging.WARNING)
    return GivenHistories(interactions=events.cast({"user_id": users.dtype}), users=users, timed=timed)


def _named_users(histories: Mapping[Any, Sequence[Any]]) -> pl.DataFrame:
    try:
        return pl.DataFrame({"user_id": list(histories)})
    except (TypeError, ValueError, OverflowError, PolarsError) as error:
        raise InvalidData(
            table="histories",
            column="user_id",
            rule=f"ids of several types, or of none that is usable ({str(error)[:200]})",
            remedy="use one type for all user ids, strings or integers",
        ) from error


def _interactions(frame: pl.DataFrame, table: str, notes: Notes) -> pl.DataFrame:
    frame = canonical_names(frame, table, ALIASES["interactions"], ("user_id", "item_id", "timestamp"), notes)
    made = frame.select(
        columns.ids(frame, "user_id", table=table),
        columns.ids(frame, "item_id", table=table),
        columns.timestamps(frame, "timestamp", table=table),
        _events(frame, table, notes),
        _numbers(frame, "value", table, notes),
        columns.weights(frame, "weight", table=table) if "weight" in frame.columns else pl.lit(1.0).alias("weight"),
        *([columns.ids(frame, "session_id", table=table, nullable=True)] if "session_id" in frame.columns else []),
    )
    ignored = [name for name in frame.columns if name not in INTERACTION_COLUMNS]
    if ignored:
        notes.add(f"{table}: columns that are not used: {', '.join(ignored)}.")
    first_day = int((made["timestamp"].dt.date() == EPOCH).sum())
    if 0 < first_day < made.height:
        notes.add(
            f"{table}: {first_day:,} of {made.height:,} rows are of 1970-01-01, as a missing time is often written.",
            level=logging.WARNING,
        )
    return made.sort([name for name in INTERACTION_COLUMNS if name in made.columns], nulls_last=True)


def _note_future(timestamps: pl.Series, now: datetime, notes: Notes) -> None:
    late = timestamps.filter(timestamps > now)
    if len(late):
        notes.add(
            f"interactions: {len(late):,} of {len(timestamps):,} rows lie in the future, the last at {late.max()!s}; "
            "everything before them looks old. Check the clock, time zone and unit, or leave them out.",
            level=logging.WARNING,
        )


def _items(frame: pl.DataFrame, notes: Notes) -> pl.DataFrame:
    frame = canonical_names(_not_empty(frame, "items"), "items", ALIASES["items"], ("item_id", "title"), notes)
    absent = [name for name in ITEM_COLUMNS if name not in frame.columns]
    if absent:
        notes.add(f"items: not given, so left at their defaults: {', '.join(absent)}.")
    frame = frame.with_columns(pl.lit(None).alias(name) for name in absent)
    made = frame.select(
        _unique_ids(frame, "item_id", "items"),
        columns.texts(frame, "title", table="items").fill_null(""),
        columns.texts(frame, "description", table="items").fill_null(""),
        columns.categories(frame, "categories", table="items"),
        _numbers(frame, "price", "items", notes),
        columns.timestamps(frame, "created_at", table="items", nullable=True),
        columns.flags(frame, "available", table="items").fill_null(True),
        *_features(frame, ITEM_COLUMNS, "items", notes),
    )
    untitled = (made["title"] == "").sum()
    if untitled:
        notes.add(f"items: {untitled:,} of {len(made):,} have an empty title.")
    return made.sort("item_id")


def _users(frame: pl.DataFrame, notes: Notes) -> pl.DataFrame:
    frame = canonical_names(_not_empty(frame, "users"), "users", ALIASES["users"], ("user_id",), notes)
    made = frame.select(_unique_ids(frame, "user_id", "users"), *_features(frame, ("user_id",), "users", notes))
    return made.sort("user_id")


def _events(frame: pl.DataFrame, table: str, notes: Notes) -> pl.Series:
    default = "interaction"
    if "event" not in frame.columns:
        notes.add(f"{table}: no event column, so every event is {default!r}.")
        return pl.repeat(default, len(frame), eager=True).alias("event")
    events = columns.texts(frame, "event", table=table)
    if events.null_count():
        notes.add(f"{table}: {events.null_count():,} of {len(frame):,} events are null and read as {default!r}.")
    return events.fill_null(default)


def _numbers(frame: pl.DataFrame, name: str, table: str, notes: Notes) -> pl.Series:
    if name not in frame.columns:
        return pl.repeat(None, len(frame), dtype=pl.Float64, eager=True).alias(name)
    made = columns.numbers(frame, name, table=table)
    became_null = made.null_count() - frame[name].null_count()
    if became_null:
        notes.add(f"{table}: {became_null:,} of {len(frame):,} {name} are NaN and read as null.")
    return made


def _unique_ids(frame: pl.DataFrame, name: str, table: str) -> pl.Series:
    made = columns.ids(frame, name, table=table)
    rule = "an id must appear only once"
    columns.refuse(frame, made.is_duplicated(), name, table, rule, "keep one row of each")
    return made


def _features(frame: pl.DataFrame, taken: tuple[str, ...], table: str, notes: Notes) -> list[pl.Series]:
    further = {name: columns.feature(frame[name]) for name in frame.columns if name not in taken}
    ignored = [f"{name} ({frame.schema[name]})" for name, made in further.items() if made is None]
    if ignored:
        notes.add(f"{table}: columns of a dtype that is not used: {', '.join(ignored)}.")
    return [made for made in further.values() if made is not None]


def _known_items(
    events: pl.DataFrame,
    table: str,
    items: pl.DataFrame,
    unknown_items: Literal["drop", "raise"],
    notes: Notes,
) -> pl.DataFrame:
    _same_id_type(events, table, items, "items", "item_id")
    unknown = ~events["item_id"].is_in(items["item_id"].implode())
    if unknown_items == "raise":
        remedy = 'add the items, or pass unknown_items="drop"'
        columns.refuse(events, unknown, "item_id", table, "the item is not in the items table", remedy)
    dropped = unknown.sum()
    if dropped:
        sentence = f"{table}: dropped {dropped:,} of {len(events):,} rows whose item is not in the items table."
        notes.add(sentence, level=logging.WARNING)
    return events.filter(~unknown)


def _same_id_type(left: pl.DataFrame, left_table: str, right: pl.DataFrame, right_table: str, name: str) -> None:
    ours, theirs = left.schema[name], right.schema[name]
    if ours != theirs:
        raise InvalidData(
            table=left_table,
            column=name,
            rule=f"{name} is {ours} here and {theirs} in {right_table}; an id must have one type everywhere",
            remedy=f'cast one of them, for example {left_table} with pl.col("{name}").cast(pl.{theirs}), '
            f"or to strings in both tables",
        )


def _not_empty(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    if frame.is_empty():
        raise InvalidData(table=table, rule="has no rows", remedy="check where the table comes from")
    return frame


def _with_order(frame: pl.DataFrame) -> pl.DataFrame:
    if {"timestamp", *TIME_ALIASES} & set(frame.columns):
        return frame
    return frame.with_columns(timestamp=pl.int_range(pl.len()))
