"""Probabilities of pairs that a caller names: pairs in, one number each out.

Owns reading and checking the pairs. What a probability is made of is `recsys/prediction.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys.arguments import id_series
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig, InvalidData, NotFitted
from recsys.fitted import Fitted
from recsys.prediction import ANY, Asker, Probabilities
from recsys.requests import item_rows, known_people, report_unknown
from recsys.schema import Table, read_table

Pairs = Table | Iterable[tuple[Any, Any]]
"""A table with `user_id` and `item_id`, or tuples of both."""

COLUMNS = ("user_id", "item_id")


def pair_probabilities(state: Fitted, pairs: Pairs, event: str | None, config: RecommenderConfig) -> pl.DataFrame:
    """`user_id`, `item_id`, `probability` in the order of the pairs; see `Recommender.predict_proba`."""
    made = probabilities_of(state)
    name = ANY if event is None else event
    if not made.heads:
        raise InvalidConfig("no probabilities could be learnt from these interactions; `notes` says what was missing")
    if name not in made.heads:
        raise InvalidConfig(
            f"event={name!r}: there are probabilities of {list(made.heads)}; `notes` says what was left out"
        )
    users, items = read_pairs(pairs, state)
    ids = users.unique(maintain_order=True)
    report_unknown(state, ids, "raise")
    numbered = ids.to_frame("user_id").with_row_index("user_row")
    rows = (
        users.to_frame("user_id")
        .join(numbered, on="user_id", how="left", maintain_order="left")
        .select(
            pl.col("user_row").cast(pl.Int32),
            item_row=pl.Series(item_rows(state.catalogue, items, "pairs"), dtype=pl.Int32),
        )
    )
    asker = Asker(state.snapshot, state.catalogue, config, state.hide_seen)
    found = asker.predict(made.heads[name], rows, known_people(state, ids))
    return pl.DataFrame([users.alias("user_id"), items.alias("item_id"), pl.Series("probability", found)])


def probabilities_of(state: Fitted) -> Probabilities:
    """The heads of a fit.

    Raises:
        NotFitted: it was fitted without.
    """
    if state.probabilities is None:
        raise NotFitted("this recommender was fitted with probabilities = false; set it to true and fit again")
    return state.probabilities


def read_pairs(pairs: Pairs, state: Fitted) -> tuple[pl.Series, pl.Series]:
    """User and item ids of the pairs, of the types at fit.

    Raises:
        InvalidData: the pairs are no table and no tuples of two, a column is missing, or ids are of another type.
    """
    given: Any = pairs
    is_table = isinstance(given, Mapping | str | Path) or hasattr(given, "columns") or not isinstance(given, Iterable)
    frame = read_table(given, "pairs") if is_table else _frame_of(list(given))
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InvalidData(
            table="pairs",
            column=missing[0],
            rule=f"the required column is missing; there are: {', '.join(frame.columns[:50])}",
            remedy="give a table with user_id and item_id",
        )
    types = (state.events.schema["user_id"], state.catalogue.items.schema["item_id"])
    users, items = (id_series(frame[name], f"pairs.{name}", dtype) for name, dtype in zip(COLUMNS, types, strict=True))
    return users, items


def _frame_of(pairs: list[Any]) -> pl.DataFrame:
    wrong = [pair for pair in pairs if not isinstance(pair, list | tuple) or len(pair) != 2]
    if wrong:
        raise InvalidData(
            table="pairs",
            rule="each must be a tuple of a user id and an item id",
            count=len(wrong),
            rows=wrong[:5],
            remedy='give tuples such as ("ada", "i7"), or a table with user_id and item_id',
        )
    try:
        return pl.DataFrame({name: [pair[place] for pair in pairs] for place, name in enumerate(COLUMNS)})
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InvalidData(
            table="pairs",
            rule=f"ids of several types, or of none that is usable ({str(error)[:200]})",
            remedy="use one type for all user ids and one for all item ids, as at fit",
        ) from error
