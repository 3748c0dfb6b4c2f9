"""Interactions by row numbers, as every step after the checks wants them."""

import polars as pl

from recsys.catalogue import Catalogue


def to_events(interactions: pl.DataFrame, catalogue: Catalogue, kinds: tuple[str, ...]) -> pl.DataFrame:
    """`user_id`, `item_row` (Int32), `seconds` (Float64, Unix time), `event_row` (Int16), `weight` (Float32).

    In the order of the interactions. A kind of event that is not among `kinds` counts as the first.
    """
    codes = {kind: row for row, kind in enumerate(kinds)}
    return interactions.select(
        "user_id",
        item_row=pl.Series(catalogue.rows_of(interactions["item_id"]), dtype=pl.Int32),
        seconds=pl.col("timestamp").dt.epoch("us") / 1e6,
        event_row=pl.col("event").replace_strict(codes, default=0, return_dtype=pl.Int16),
        weight=pl.col("weight").cast(pl.Float32),
    )


def strange_kinds(interactions: pl.DataFrame, kinds: tuple[str, ...]) -> str:
    """A sentence about events of kinds that were not there at the fit; empty where there are none."""
    strange = interactions["event"].filter(~interactions["event"].is_in(kinds))
    if strange.is_empty():
        return ""
    names = ", ".join(map(repr, strange.unique().sort()))
    return (
        f"{len(strange)} interactions are of kinds that were not there at the fit, {names}, and count as {kinds[0]!r}; "
        "fit again to tell them apart."
    )


def graded(labels: pl.DataFrame, users: pl.Series, catalogue: Catalogue, event_grades: tuple[str, ...]) -> pl.DataFrame:
    """What these users took: `user_row`, `item_row`, the grade of the strongest event, Int8 from 1, and its `weight`.

    Float32; of events of one item the greatest counts.
    """
    rows = users.to_frame("user_id").with_row_index("user_row").cast({"user_row": pl.Int32})
    grades = {kind: grade for grade, kind in enumerate(event_grades, start=1)}
    items = pl.Series("item_row", catalogue.rows_of(labels["item_id"]), dtype=pl.Int32)
    grade = pl.col("event").replace_strict(grades, default=1, return_dtype=pl.Int8)
    taken = labels.with_columns(items, grade=grade).join(rows, on="user_id")
    strongest = taken.group_by("user_row", "item_row").agg(pl.col("grade").max(), pl.col("weight").max())
    return strongest.cast({"weight": pl.Float32}).sort("user_row", "item_row")
