"""One column at a time: the dtypes, casts and value rules of the input tables.

Each function takes a frame and the name of one of its columns, refuses what breaks the column's rule, and returns
the column in canonical form, in the order it came. Which columns a table has is `schema`'s.
"""

from typing import Any

import polars as pl

from recsys.errors import SHOWN, InvalidData

MAX_ID_CHARS = 256

TIMESTAMP = pl.Datetime("us", "UTC")

YEAR_1 = -62_135_596_800
YEAR_2200 = 7_258_118_400
YEAR_10000 = 253_402_300_800
"""Unix seconds of the first of January."""

PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


def ids(frame: pl.DataFrame, name: str, *, table: str, nullable: bool = False) -> pl.Series:
    """Ids as String or Int64; nulls, empty and over-long strings are refused.

    Args:
        frame: the table.
        name: the id column.
        table: what messages call the table.
        nullable: whether an id may be missing, as a session's may.
    """
    column = _plain_strings(frame[name])
    frame = frame.with_columns(column)
    if not nullable:
        refuse(
            frame,
            column.is_null(),
            name,
            table,
            "an id must not be null",
            "drop these rows or give them an id",
        )
    if column.dtype == pl.Null:
        return column.cast(pl.String)
    if column.dtype == pl.String:
        refuse(frame, column == "", name, table, "an id must not be empty", "drop these rows or give them an id")
        refuse(
            frame,
            column.str.len_chars() > MAX_ID_CHARS,
            name,
            table,
            f"an id must not be longer than {MAX_ID_CHARS} characters",
            "shorten them, for example to a hash",
        )
        return column
    if column.dtype.is_integer():
        numbers = column.cast(pl.Int64, strict=False)
        lost = numbers.is_null() & column.is_not_null()
        refuse(frame, lost, name, table, "an integer id must fit into 64 signed bits", "cast the ids to strings")
        return numbers
    remedy = "cast them to strings or integers in every table alike"
    if column.dtype.is_float():
        remedy += "; libraries turn integers with missing values into floats, so drop the rows without an id first"
    raise _wrong_dtype(frame, name, table, "strings or integers", remedy)


def timestamps(frame: pl.DataFrame, name: str, *, table: str, nullable: bool = False) -> pl.Series:
    """Points in time as Datetime("us", "UTC"), see `normalise_timestamps`.

    Args:
        frame: the table.
        name: the column.
        table: what messages call the table.
        nullable: whether a time may be missing; NaN is missing too.
    """
    column = normalise_timestamps(frame[name], table=table)
    if not nullable:
        rule = "a timestamp must not be null or NaN"
        refuse(frame, column.is_null(), name, table, rule, "drop these rows or give them a time")
    return column


def normalise_timestamps(column: pl.Series, *, table: str) -> pl.Series:
    """Turns points in time of any accepted form into UTC.

    Args:
        column: Unix seconds (whole or fractional), dates, datetimes (naive ones are UTC, others are converted),
            or ISO 8601 strings (UTC where they have no offset).
        table: what messages call the table.

    Returns:
        As many values, Datetime("us", "UTC"), cut to microseconds; null and NaN become null.

    Raises:
        InvalidData: another dtype, a string that is not ISO 8601, an infinite number, a number beyond the year
            2200, or a datetime outside the years 1 to 9999.
    """
    column = _plain_strings(column)
    dtype = column.dtype
    if dtype.is_numeric():
        return _from_unix_seconds(column, table)
    if isinstance(dtype, pl.Date | pl.Datetime):
        return _from_datetime(column, table)
    if dtype == pl.String:
        return _from_iso(column, table)
    if dtype == pl.Null:
        return column.cast(TIMESTAMP)
    forms = "datetimes, dates, Unix seconds or ISO 8601 strings"
    raise _wrong_dtype(column.to_frame(), column.name, table, forms, "convert the column to one of these")


def numbers(frame: pl.DataFrame, name: str, *, table: str) -> pl.Series:
    """Numbers as Float64: infinite ones are refused, NaN becomes null; of a column without values the dtype is open."""
    column = frame[name]
    if not (column.dtype.is_numeric() or column.null_count() == len(column)):
        raise _wrong_dtype(frame, name, table, "numbers", "convert the column to numbers")
    column = column.cast(pl.Float64)
    refuse(
        frame,
        column.is_infinite(),
        name,
        table,
        "a number must be finite",
        "drop these rows or set them to null",
    )
    return column.fill_nan(None)


def weights(frame: pl.DataFrame, name: str, *, table: str) -> pl.Series:
    """Weights as Float64: finite and not negative, none missing."""
    column = numbers(frame, name, table=table)
    bad = column.is_null() | (column < 0)
    refuse(
        frame,
        bad,
        name,
        table,
        "a weight must be a finite number of at least 0",
        "drop these rows or set them to 1",
    )
    return column


def texts(frame: pl.DataFrame, name: str, *, table: str) -> pl.Series:
    """Texts as String; nulls stay."""
    column = _plain_strings(frame[name])
    if column.dtype not in (pl.String, pl.Null):
        raise _wrong_dtype(frame, name, table, "strings", "cast the column to strings")
    return column.cast(pl.String)


def categories(frame: pl.DataFrame, name: str, *, table: str) -> pl.Series:
    """Categories as List(String) without empty parts; a string is one category, or several joined by "|"."""
    column = _plain_strings(frame[name])
    if column.dtype == pl.Null:
        column = column.cast(pl.List(pl.String))
    elif column.dtype == pl.String:
        column = column.str.split("|")
    elif not _is_list_of_strings(column.dtype):
        raise _wrong_dtype(frame, name, table, "strings or lists of strings", "cast the column to lists of strings")
    part = pl.element().str.strip_chars()
    return column.cast(pl.List(pl.String)).list.eval(part.filter(part != "")).fill_null([])


def flags(frame: pl.DataFrame, name: str, *, table: str) -> pl.Series:
    """Flags as Boolean, from booleans or the integers 0 and 1; nulls stay."""
    column = frame[name]
    is_flag = column.dtype in (pl.Boolean, pl.Null) or (
        column.dtype.is_integer() and column.drop_nulls().is_in([0, 1]).all()
    )
    if not is_flag:
        raise _wrong_dtype(frame, name, table, "booleans, or the integers 0 and 1", "convert the column to booleans")
    return column.cast(pl.Boolean)


def feature(column: pl.Series) -> pl.Series | None:
    """A further column as a ranker feature, or None where its dtype is no use: Int64, Float64, Boolean, String."""
    column = _plain_strings(column)
    dtype = column.dtype
    if dtype in (pl.UInt64, pl.Int128) or dtype.is_float() or dtype.is_decimal():
        return column.cast(pl.Float64).fill_nan(None)
    if dtype.is_integer():
        return column.cast(pl.Int64)
    return column if dtype in (pl.Boolean, pl.String) else None


def of_type(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """A column without values, or of floats that are whole numbers, as of the type; any other as it is."""
    if column.dtype == pl.Null:
        return column.cast(dtype)
    whole = column.dtype.is_float() and dtype.is_integer() and (column.drop_nulls().drop_nans() % 1.0 == 0.0).all()
    return column.fill_nan(None).cast(dtype) if whole else column


def refuse(frame: pl.DataFrame, bad: pl.Series, name: str, table: str, rule: str, remedy: str) -> None:
    """Raises InvalidData where a row is bad.

    Args:
        frame: the table, to show the first bad rows of.
        bad: Boolean, one value a row; null is not bad.
        name: the column that the rule is about.
        table: what the message calls the table.
        rule: the rule, as a clause.
        remedy: what to do.
    """
    rows = bad.fill_null(False).arg_true()
    if len(rows):
        raise InvalidData(
            table=table,
            column=name,
            rule=rule,
            count=len(rows),
            total=len(frame),
            rows=[_shown(frame, row, name) for row in rows.head(SHOWN)],
            remedy=remedy,
        )


def _shown(frame: pl.DataFrame, row: int, name: str) -> dict[str, Any]:
    # The offending value first, and its neighbours short: a message cuts what it shows.
    values = frame.row(row, named=True)
    others = {key: value for key, value in values.items() if key != name}
    return {"row": row, name: values[name], **others}


def _wrong_dtype(frame: pl.DataFrame, name: str, table: str, wanted: str, remedy: str) -> InvalidData:
    return InvalidData(
        table=table,
        column=name,
        rule=f"must hold {wanted}, but its dtype is {frame.schema[name]}",
        rows=frame[name].head(SHOWN).to_list(),
        remedy=remedy,
    )


def _plain_strings(column: pl.Series) -> pl.Series:
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def _is_list_of_strings(dtype: pl.DataType) -> bool:
    if not isinstance(dtype, pl.List | pl.Array):
        return False
    return dtype.inner in (pl.String, pl.Null, pl.Categorical, pl.Enum)


def _from_unix_seconds(column: pl.Series, table: str) -> pl.Series:
    seconds = column.cast(pl.Float64).fill_nan(None)
    refuse(
        column.to_frame(),
        seconds.abs() > YEAR_2200,
        column.name,
        table,
        "Unix seconds must lie before the year 2200; these numbers look like milliseconds",
        "divide them by 1000 (by 1,000,000 where they are microseconds)",
    )
    return (seconds * PER_SECOND["us"]).round().cast(pl.Int64).cast(TIMESTAMP)


def _from_datetime(column: pl.Series, table: str) -> pl.Series:
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("ms"))
    unit = str(getattr(column.dtype, "time_unit", "us"))
    ticks = column.to_physical()
    seconds = ticks // PER_SECOND[unit]
    refuse(
        ticks.to_frame(),
        (seconds < YEAR_1) | (seconds >= YEAR_10000),
        column.name,
        table,
        f"a datetime must lie in the years 1 to 9999 (the numbers shown are {unit} since 1970)",
        "check the unit with which the column was made",
    )
    return column.dt.cast_time_unit("us").cast(TIMESTAMP)


def _from_iso(column: pl.Series, table: str) -> pl.Series:
    filled = (
        column.str.strip_chars()
        .str.replace(r"^(\d{4}-\d{2}-\d{2})$", "${1}T00:00:00")
        .str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T")
        .str.replace(r"T(\d{2}:\d{2})($|[Z+-])", "T${1}:00${2}")
        .str.replace(r"(T[\d:.]+)$", "${1}Z")
    )
    parsed = filled.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", strict=False)
    refuse(
        column.to_frame(),
        parsed.is_null() & column.is_not_null(),
        column.name,
        table,
        "a time given as a string must be ISO 8601, such as 2024-05-31 or 2024-05-31T18:30:00+02:00",
        "parse the column into datetimes yourself",
    )
    return parsed.cast(TIMESTAMP)
