"""Columns of items and users as groups of a dozen at most, for the parts of a report.

Owns how a column of any kind becomes groups, always over the whole table, so that every cut has the same ones.
"""

from collections.abc import Sequence

import polars as pl

MAX_GROUPS = 12
MAX_COLUMNS = 6
N_BANDS = 4
OTHER = "other"
MILLIONS = 10_000_000  # whole numbers from here on are told in millions
NOT_GROUPS = ("title", "description")


def grouped(table: pl.DataFrame, key: str, names: Sequence[str] = ()) -> pl.DataFrame:
    """The key and, as ordered Enums, the columns that make groups; null where a value is missing.

    Few texts, truth values: each a group, by name. More texts: the most frequent ones, then "other"; lists go by their
    first value. Numbers, dates: four bands of about equally many rows, ascending.

    Args:
        table: canonical items or users.
        key: its id.
        names: the columns; by default the first `MAX_COLUMNS` that make two groups or more, without those whose texts
            hardly ever repeat.
    """
    chosen = [name for name in names or table.columns if name in table.columns and name != key]
    chosen = chosen if names else [name for name in chosen if name not in NOT_GROUPS]
    found = [_group(table[name], named=bool(names)) for name in chosen]
    made = [column for column in found if column is not None]
    return pl.DataFrame([table[key], *(made if names else made[:MAX_COLUMNS])])


def _group(column: pl.Series, *, named: bool) -> pl.Series | None:
    if isinstance(column.dtype, pl.List):
        column = column.list.first()
    if column.drop_nulls().n_unique() < 2:
        return None
    if column.dtype.is_temporal() or (column.dtype.is_numeric() and column.n_unique() > MAX_GROUPS):
        return _bands(column)
    if column.dtype.is_numeric():
        order = column.drop_nulls().unique().sort().cast(pl.String)
        return column.cast(pl.String).cast(pl.Enum(order))
    texts = column.cast(pl.String)
    rare = texts.n_unique() > len(texts) / 2 and texts.n_unique() > MAX_GROUPS
    return None if rare and not named else _most_frequent(texts)


def _most_frequent(texts: pl.Series) -> pl.Series:
    """Each text by its name where they are few, else the most frequent ones and the rest."""
    counts = texts.drop_nulls().value_counts().sort(["count", texts.name], descending=[True, False])
    if counts.height <= MAX_GROUPS:
        return texts.cast(pl.Enum(counts[texts.name].sort()))
    kept = counts[texts.name].head(MAX_GROUPS - 1).to_list()
    other = texts.is_not_null() & ~texts.is_in(kept)
    order = [*(name for name in kept if name != OTHER), OTHER]
    return texts.zip_with(~other, pl.Series([OTHER]).new_from_index(0, len(texts))).cast(pl.Enum(order))


def _bands(column: pl.Series) -> pl.Series | None:
    """Bands from the least value to the greatest, each named by its own two."""
    ranks = column.to_frame("value").with_row_index().filter(pl.col("value").is_not_null())
    share = (pl.col("value").rank("average") - 0.5) / pl.len()  # equal values share a band
    bands = ranks.with_columns(band=(share * N_BANDS).floor().cast(pl.Int32))
    ends = bands.group_by("band").agg(low=pl.col("value").min(), high=pl.col("value").max()).sort("band")
    if ends.height < 2:
        return None
    labels = [_span(low, high) for low, high in ends.select("low", "high").iter_rows()]
    named = bands.with_columns(
        pl.col("band").replace_strict(ends["band"], labels, return_dtype=pl.String).alias("label")
    )
    whole = column.to_frame().with_row_index().join(named.select("index", "label"), on="index", how="left")
    return whole.sort("index")["label"].cast(pl.Enum(list(dict.fromkeys(labels)))).alias(column.name)


def _span(low: object, high: object) -> str:
    first, last = _text(low), _text(high)
    return first if first == last else f"{first}–{last}"


def _text(value: object) -> str:
    """Short enough for a chart: fractions with four digits, large whole numbers in millions, dates without the time."""
    if isinstance(value, int) and abs(value) >= MILLIONS:
        return f"{value / 1e6:.0f}M"
    return f"{value:.4g}" if isinstance(value, float) else str(value).split(" ")[0]
