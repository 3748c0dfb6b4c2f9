"""The items as the two stages want them: texts, row numbers, group keys and numeric columns.

Owns the step from the validated items table to plain values; nothing here depends on interactions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.text import item_texts

CORE = ("item_id", "title", "description", "categories", "created_at", "available")
SHORT_TEXT = 80  # characters: about 20 tokens, which leaves more than that for the history
MAX_GROUPS = 1000  # a text column with more distinct values names things, it does not group them


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items, in order of `item_id`; an item's place is its row.

    Attributes:
        items: canonical items table.
        texts: distinct item texts, ascending, n_texts.
        text_rows: int64 (n_items,), which text each item has.
        groups: `item_row`, `category`, `text` and further group keys `of_*`, Int32, one row an item.
        numbers: `item_row` and Float32 columns `item__*` made from numeric and boolean columns.
        available: bool (n_items,).
    """

    items: pl.DataFrame
    texts: list[str]
    text_rows: npt.NDArray[np.int64]
    groups: pl.DataFrame
    numbers: pl.DataFrame
    available: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls, items: pl.DataFrame, *, ignore_columns: Sequence[str] = (), group_columns: Sequence[str] | None = None
    ) -> Self:
        """From the canonical items table.

        Args:
            items: sorted by `item_id`.
            ignore_columns: item columns that must not become features.
            group_columns: text columns that group the items; None takes those of a manageable number of values.
        """
        texts = pl.Series("text", item_texts(items), dtype=pl.String)
        codes = _codes(texts)
        distinct = texts.to_frame().with_columns(code=codes).unique("code").sort("code")["text"].to_list()
        extra = [name for name in items.columns if name not in (*CORE, *ignore_columns)]
        rows = pl.int_range(items.height, dtype=pl.Int32, eager=True).alias("item_row")
        if group_columns is None:
            group_columns = [name for name in extra if _is_group(items[name])]
        keys = {f"of_{name}": _codes(items[name].cast(pl.String)) for name in group_columns}
        leaf = _codes(items["categories"].list.last().fill_null("").alias("category"))
        return cls(
            items=items,
            texts=distinct,
            text_rows=codes.to_numpy().astype(np.int64),
            groups=pl.DataFrame(
                [rows, leaf.alias("category"), codes.alias("text"), *(v.alias(k) for k, v in keys.items())]
            ),
            numbers=pl.DataFrame([rows, *_numbers(items, extra, prefix="item__")]),
            available=items["available"].to_numpy().astype(np.bool_),
        )

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Text columns of the items that group them."""
        return tuple(name.removeprefix("of_") for name in self.groups.columns if name.startswith("of_"))

    def __len__(self) -> int:
        """Number of items."""
        return self.items.height

    @property
    def has_text(self) -> npt.NDArray[np.bool_]:
        """Bool (n_items,): items with any text at all; the others cannot be found by text."""
        filled = np.array([bool(text) for text in self.texts], dtype=np.bool_)
        return filled[self.text_rows]

    def text_of(self, row: int) -> str:
        """Text of one item."""
        return self.texts[int(self.text_rows[row])]

    def short_text_of(self, row: int) -> str:
        """The beginning of it, where the interest model must also read a history."""
        return self.text_of(row)[:SHORT_TEXT]

    def rows_of(self, item_ids: pl.Series) -> npt.NDArray[np.int64]:
        """Rows of the given ids, int64; -1 where an id is not in the catalogue."""
        known = self.items.select("item_id").with_row_index("row")
        wanted = pl.DataFrame({"item_id": item_ids}).cast({"item_id": self.items.schema["item_id"]}, strict=False)
        rows = wanted.join(known, on="item_id", how="left", maintain_order="left")["row"]
        return rows.cast(pl.Int64).fill_null(-1).to_numpy()

    def ids_of(self, rows: npt.NDArray[Any]) -> pl.Series:
        """Ids of the given rows."""
        return self.items["item_id"].gather(rows)


def crowded_columns(table: pl.DataFrame, ignore_columns: Sequence[str]) -> list[str]:
    """Text columns, beside those with a meaning of their own, with too many values to be groups."""
    extra = [name for name in table.columns if name not in (*CORE, "user_id", *ignore_columns)]
    return [name for name in extra if _is_text(table[name]) and table[name].n_unique() > MAX_GROUPS]


def user_values(users: pl.DataFrame | None) -> dict[str, list[str]]:
    """The values, in order, of the text columns that group people; models read their places."""
    groups = [] if users is None else [column for column in users.iter_columns() if column.name != "user_id"]
    return {
        column.name: column.cast(pl.String).drop_nulls().unique().sort().to_list()
        for column in groups
        if _is_group(column)
    }


def user_numbers(users: pl.DataFrame | None, values: Mapping[str, Sequence[str]]) -> pl.DataFrame | None:
    """`user_id` and Float32 columns `user__*`, None where there is none.

    Text becomes its place among the `values` of its column, null where it is none of them.
    """
    if users is None:
        return None
    extra = users.columns[1:]
    coded = [
        users[name].cast(pl.String).replace_strict(
            list(known), np.arange(len(known)), default=None, return_dtype=pl.Float32
        ).alias(f"user__{name}")
        for name, known in values.items()
    ]  # fmt: skip
    numbers = _numbers(users, extra, prefix="user__")
    return pl.DataFrame([users["user_id"], *numbers, *coded]) if numbers or coded else None


def _numbers(table: pl.DataFrame, names: Sequence[str], *, prefix: str) -> list[pl.Series]:
    chosen = [table[name] for name in names if table[name].dtype.is_numeric() or table[name].dtype == pl.Boolean]
    return [column.cast(pl.Float32).alias(prefix + column.name) for column in chosen]


def _is_group(column: pl.Series) -> bool:
    """Whether a column is text that puts rows into a manageable number of groups."""
    return _is_text(column) and 1 < column.n_unique() <= MAX_GROUPS


def _is_text(column: pl.Series) -> bool:
    return column.dtype in (pl.String, pl.Categorical) or isinstance(column.dtype, pl.Enum)


def _codes(column: pl.Series) -> pl.Series:
    """Int32 codes in order of the values, so that they do not depend on the order of the rows."""
    return column.rank("dense").fill_null(0).cast(pl.Int32) - (0 if column.null_count() else 1)
