"""The texts the models read: of an item, of a history, and their fingerprints.

Owns cleaning, composition and order of the parts. Does not own token limits: those are the encoders'.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import polars as pl

DESCRIPTION_CHARS = 200
TEXT_CHARS = 400  # of an item or a query
"""How much of a description enters an item's text: titles and categories must not drown."""

CLEAN = r"^(?:[!-~]+(?: [!-~]+)*)?$"
"""What `clean` leaves as it is: visible ASCII and single spaces, a pattern of polars."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def clean(text: str, max_chars: int) -> str:
    """Brings a text into canonical form.

    It is cut first, so that a text of many megabytes costs as much as a short one. Then lone surrogates become
    U+FFFD (UTF-8 and tokenizers refuse them), the text is brought to Unicode NFC, control characters become
    spaces, and runs of white space become one space.

    Args:
        text: any string.
        max_chars: the most characters to read, and to return.

    Returns:
        The text without white space at its ends; empty where nothing is left. Cleaning it again changes nothing.
    """
    text = text[:max_chars]
    if _SURROGATE.search(text):
        # Through UTF-16, so that two surrogates that make up one character become that character.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _CONTROL.sub(" ", unicodedata.normalize("NFC", text))
    # NFC makes a few characters longer, hence the second cut.
    return " ".join(text.split())[:max_chars].rstrip()


def item_texts(items: pl.DataFrame, *, max_chars: int = TEXT_CHARS) -> list[str]:
    """The text of each item: title, brand, category path, start of the description; empty parts are left out.

    Args:
        items: the canonical items table; a column `brand` is used where there is one.
        max_chars: the most characters of a text.

    Returns:
        One text a row, in the order of the rows, for example "Cast iron skillet. Lodge. Kitchen > Pans. Heavy,
        lasts for ever". Equal rows share one string.
    """
    brand = pl.col("brand").cast(pl.String) if "brand" in items.columns else pl.lit("")
    parts = items.select(
        title=pl.col("title").str.head(max_chars),
        brand=brand.fill_null("").str.head(max_chars),
        categories=pl.col("categories").list.join(" > ").str.head(max_chars),
        description=pl.col("description").str.head(DESCRIPTION_CHARS),
    )
    cleaned = (_cleaned(part, max_chars) for part in parts)
    filled = [pl.when(part != "").then(part) for part in cleaned]
    joined = parts.select(pl.concat_str(filled, separator=". ", ignore_nulls=True).str.head(max_chars))
    shared: dict[str, str] = {}
    return [shared.setdefault(text, text) for text in joined.to_series().str.strip_chars_end().to_list()]


def _cleaned(column: pl.Series, max_chars: int) -> pl.Series:
    """Every value cleaned. Most are clean as they are; of the others, equal ones are cleaned once."""
    found = column.filter(~column.str.contains(CLEAN)).unique()
    made = pl.Series([clean(value, max_chars) for value in found], dtype=pl.String)
    return column.replace(found, made)


def history_text(titles: Sequence[str], *, max_items: int = 8, max_chars: int = 400) -> str:
    """The text of a history: its newest distinct titles, newest first, joined by "; ".

    Args:
        titles: the titles of the items, newest first.
        max_items: the most titles to use.
        max_chars: the most characters of the text.

    Returns:
        One line; empty where there is no title.
    """
    newest = [title for title in dict.fromkeys(titles) if title][:max_items]
    return _joined((clean(title, max_chars) for title in newest), "; ", max_chars)


def _joined(cleaned: Iterable[str], separator: str, max_chars: int) -> str:
    """Parts that are cleaned already, without the empty ones."""
    return separator.join(part for part in cleaned if part)[:max_chars].rstrip()
