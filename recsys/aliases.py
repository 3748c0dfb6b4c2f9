"""What other libraries and data sets call the columns of the tables.

Owns the alias table and the renaming. What the columns must hold is `schema`'s and `columns`'.
"""

from collections.abc import Mapping

import polars as pl

from recsys.errors import InvalidData
from recsys.notes import Notes

USER_ALIASES = ("userId", "userID", "USER_ID", "user", "uid", "visitorid", "customer_id", "household_id")
ITEM_ALIASES = ("itemId", "itemID", "ITEM_ID", "item", "movieId", "product_id", "article_id", "parent_asin", "asin")
TIME_ALIASES = ("datetime", "TIMESTAMP", "time", "date", "ts", "unixReviewTime", "transaction_timestamp")

ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "interactions": {
        "user_id": USER_ALIASES,
        "item_id": ITEM_ALIASES,
        "timestamp": TIME_ALIASES,
        "event": ("event_type", "EVENT_TYPE", "behavior"),
        "value": ("rating", "EVENT_VALUE", "score"),
    },
    "items": {
        "item_id": ITEM_ALIASES,
        "title": ("name", "product_name", "item_name", "TITLE"),
        "description": ("desc", "overview", "DESCRIPTION"),
        "categories": ("category", "genres", "CATEGORY"),
        "price": ("PRICE",),
        "created_at": ("release_date", "publish_time"),
    },
    "users": {"user_id": USER_ALIASES},
}
"""Foreign names by table and canonical column: exact, case-sensitive, used only where the canonical one is absent."""

ID_NAMES = ("user_id", "item_id", "session_id", *USER_ALIASES, *ITEM_ALIASES)


def canonical_names(
    frame: pl.DataFrame,
    table: str,
    aliases: Mapping[str, tuple[str, ...]],
    required: tuple[str, ...],
    notes: Notes,
) -> pl.DataFrame:
    """The frame with foreign names renamed, each with a note.

    Args:
        frame: as the caller gave it.
        table: what messages call it.
        aliases: foreign names by canonical column, see `ALIASES`.
        required: columns that must be there.
        notes: gets a sentence for each renamed column.

    Raises:
        InvalidData: a required column is missing, or several could be one.
    """
    renamed = {}
    for name, others in aliases.items():
        found = [other for other in others if other in frame.columns]
        if name in frame.columns or not found:
            continue
        if len(found) > 1:
            raise InvalidData(
                table=table,
                column=name,
                rule=f"several columns could be {name}: {', '.join(found)}",
                remedy=f"rename the right one to {name}",
            )
        renamed[found[0]] = name
        notes.add(f"{table}: column {found[0]} is read as {name}.")
    frame = frame.rename(renamed)
    for name in required:
        if name not in frame.columns:
            raise InvalidData(
                table=table,
                column=name,
                rule=f"the required column is missing; there are: {', '.join(frame.columns[:50])}",
                remedy=f"rename one to {name}; {', '.join(aliases.get(name, ()))} would be understood too",
            )
    return frame
