"""Tables in and out: reads what the caller holds into polars, and hands frames back in the caller's library.

Does not look at the content: names, dtypes and rules of columns are `schema`'s and `columns`'.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import narwhals as nw
import polars as pl
from narwhals.typing import IntoFrame
from polars.exceptions import PolarsError

from recsys.errors import InvalidData

Table: TypeAlias = IntoFrame | str | Path
"""A table as the caller holds it: a pandas, polars (eager or lazy) or pyarrow frame, or another one that narwhals
reads; or the path of a Parquet file, of a folder of Parquet files, or of a CSV file."""


def read_table(source: Table, name: str, *, csv_text_columns: tuple[str, ...] = ()) -> pl.DataFrame:
    """Reads a table as it is.

    Args:
        source: a frame or a path, see `Table`.
        name: what messages call the table, for example "items".
        csv_text_columns: columns of a CSV file that become integers only where every value is spelt as one
            ("007" is not).

    Returns:
        A polars frame with the columns and rows of `source`.

    Raises:
        InvalidData: the path is missing or of an unknown kind, the type is not a table, or it cannot be read.
    """
    if isinstance(source, str | Path):
        return _read_path(Path(source), name, csv_text_columns)
    try:
        frame = nw.from_native(source)
        if isinstance(frame, nw.LazyFrame):
            frame = frame.collect(backend="polars")
        return frame.to_polars()
    except (ImportError, PolarsError, TypeError, ValueError, NotImplementedError) as error:
        kind = f"{type(source).__module__}.{type(source).__name__}"
        raise _unreadable(name, f"this {kind}", error) from error


def implementation_of(source: Table) -> nw.Implementation:
    """The frame library of a table that `read_table` accepts; polars for paths."""
    if isinstance(source, str | Path):
        return nw.Implementation.POLARS
    return nw.from_native(source).implementation


def frame_of_histories(histories: Mapping[Any, Sequence[Any]], item_dtype: pl.DataType) -> pl.DataFrame:
    """Histories given as a mapping, as a table.

    Args:
        histories: user id to item ids, oldest first.
        item_dtype: the dtype of the item ids where all sequences are empty.

    Returns:
        `user_id`, `item_id` and `timestamp` (the position in the user's sequence), one row an item.

    Raises:
        InvalidData: no users, a history that is no sequence, or ids of several types.
    """
    if not histories:
        raise InvalidData(table="histories", rule="has no users", remedy="name at least one user")
    for user, sequence in histories.items():
        if isinstance(sequence, str | bytes | Mapping) or not hasattr(sequence, "__getitem__"):
            raise InvalidData(
                table="histories",
                rule=f"the history of user {user!r} is a {type(sequence).__name__}, not a sequence",
                remedy="give each user a list of item ids, oldest first",
            )
    lists = [list(sequence) for sequence in histories.values()]
    owner = [row for row, sequence in enumerate(lists) for _ in sequence]
    items = [item for sequence in lists for item in sequence]
    order = [position for sequence in lists for position in range(len(sequence))]
    try:
        users = pl.Series("user_id", list(histories)).gather(owner)
        item_ids = pl.Series("item_id", items, dtype=None if items else item_dtype)
    except (TypeError, ValueError, OverflowError, PolarsError) as error:
        raise InvalidData(
            table="histories",
            rule=f"ids of several types, or of none that is usable ({str(error)[:200]})",
            remedy="use one type for all user ids and one for all item ids, strings or integers",
        ) from error
    return pl.DataFrame([users, item_ids, pl.Series("timestamp", order, dtype=pl.Int64)])


def to_caller(frame: pl.DataFrame, implementation: nw.Implementation) -> Any:
    """Hands a frame back in the caller's library: pandas and pyarrow get their own, everybody else polars.

    Args:
        frame: any polars frame.
        implementation: as `Tables.implementation` says.
    """
    if implementation.is_pandas():
        return frame.to_pandas()
    if implementation.is_pyarrow():
        # Older pyarrow functions know no string views.
        return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return frame


def _read_path(path: Path, name: str, csv_text_columns: tuple[str, ...]) -> pl.DataFrame:
    if not path.exists():
        raise InvalidData(
            table=name,
            rule=f"the path {path} does not exist",
            remedy="check its spelling and the current folder",
        )
    try:
        if path.is_dir():
            return pl.read_parquet(_parts(path, name))
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return _read_csv(path, csv_text_columns)
    except (PolarsError, OSError) as error:
        raise _unreadable(name, str(path), error) from error
    raise InvalidData(
        table=name,
        rule=f"{path} is neither a .parquet nor a .csv file",
        remedy="convert it to one of these, or read it yourself and pass the frame",
    )


def _parts(folder: Path, name: str) -> list[Path]:
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        raise InvalidData(
            table=name,
            rule=f"the folder {folder} holds no *.parquet file",
            remedy="name the folder that holds the Parquet files themselves",
        )
    return parts


def _read_csv(path: Path, text_columns: tuple[str, ...]) -> pl.DataFrame:
    header = pl.read_csv(path, n_rows=0, infer_schema=False).columns
    text = [column for column in header if column in text_columns]
    frame = pl.read_csv(path, infer_schema_length=None, schema_overrides=dict.fromkeys(text, pl.String))
    return frame.with_columns(_integers_where_exact(frame[column]) for column in text)


def _integers_where_exact(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Int64, strict=False)
    return numbers if numbers.cast(pl.String).eq_missing(column).all() else column


def _unreadable(name: str, what: str, error: Exception) -> InvalidData:
    return InvalidData(
        table=name,
        rule=f"{what} could not be read as a table ({type(error).__name__}: {str(error)[:200]})",
        remedy="give a pandas, polars or pyarrow frame whose columns have one type and valid Unicode each, "
        "or the path of a Parquet file, of a folder of Parquet files or of a CSV file",
    )
