"""What callers hand to the door besides tables: ids, list lengths and words, checked before anything is computed."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import polars as pl

from indexing.retriever import Retriever
from recsys.errors import InvalidConfig, InvalidData

FilterSeen = bool | Literal["auto"]
OnUnknown = Literal["fallback", "warn", "raise"]


def id_series(values: Iterable[Any], name: str, dtype: pl.DataType) -> pl.Series:
    """Ids as a series of the type that was fitted on.

    Args:
        values: ids; one string counts as one id.
        name: what messages call them.
        dtype: of the ids at fit.

    Raises:
        InvalidData: ids of another type, of mixed types, or null.
    """
    refuse_table(values, name)
    try:
        listed = values if isinstance(values, pl.Series) else [values] if isinstance(values, str) else list(values)
        ids = pl.Series(name, listed)
        ids = ids.cast(pl.String) if ids.dtype in (pl.Categorical, pl.Enum) else ids
        ids = ids.cast(dtype) if ids.dtype.is_integer() and dtype.is_integer() else ids
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InvalidData(
            table=name,
            rule=f"must be a list of {dtype} ids as at fit ({str(error)[:200]})",
            remedy="give a list or a series of ids of one type",
        ) from error
    if len(ids) == 0:
        return pl.Series(name, [], dtype=dtype)
    if ids.dtype != dtype or ids.null_count():
        raise InvalidData(
            table=name,
            rule=f"ids must be {dtype} as at fit, got {ids.dtype} with {ids.null_count()} nulls",
            count=len(ids),
            rows=ids.head(5).to_list(),
            remedy="cast the ids to the type of the interactions",
        )
    return ids


def refuse_table(values: Any, name: str) -> None:
    """Refuse tables and mappings where a list is meant: to go through them would give the names of their columns.

    Raises:
        InvalidData: it is one.
    """
    if isinstance(values, Mapping) or hasattr(values, "columns"):
        raise InvalidData(
            table=name, rule=f"must be a list or a series, got a {type(values).__name__}",
            remedy='give one of its columns, such as frame["user_id"]',
        )  # fmt: skip


def positive(value: int, name: str) -> int:
    """The value itself.

    Raises:
        InvalidConfig: it is no whole number of at least 1.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InvalidConfig(f"{name}={value!r} must be a whole number of at least 1")
    return int(value)


def distinct_texts(texts: Sequence[str]) -> list[str]:
    """The texts, each once, in their order; one string counts as one text.

    Raises:
        InvalidData: one is not a string, or not valid Unicode.
    """
    refuse_table(texts, "texts")
    if not isinstance(texts, Iterable):
        raise InvalidData(table="texts", rule=f"must be a list of strings, got {texts!r}", remedy="give a list")
    listed = [texts] if isinstance(texts, str) else list(texts)
    wrong = [text for text in listed if not isinstance(text, str) or not _is_unicode(text)]
    if wrong:
        raise InvalidData(
            table="texts",
            rule="must be strings of valid Unicode",
            count=len(wrong),
            rows=wrong[:5],
            remedy="give one text for each query or profile, without lone surrogates",
        )
    return list(dict.fromkeys(listed))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def asked_alone(retriever: Retriever, sources: Iterable[str]) -> Retriever:
    """A retriever with some of the sources only.

    Raises:
        InvalidConfig: there is no source of that name, or none is named.
    """
    names = [sources] if isinstance(sources, str) or not isinstance(sources, Iterable) else list(sources)
    unknown = [name for name in names if name not in retriever.sources]
    if unknown or not names:
        raise InvalidConfig(f"sources={names!r}: known are {list(retriever.sources)}")
    return retriever.only(names)


def hide_seen(filter_seen: FilterSeen, *, auto: bool) -> bool:
    """Whether seen items are left out; `auto` is what "auto" means for the data.

    Raises:
        InvalidConfig: another word.
    """
    if filter_seen == "auto":
        return auto
    if not isinstance(filter_seen, bool | np.bool_):
        raise InvalidConfig(f'filter_seen={filter_seen!r} must be True, False or "auto"')
    return bool(filter_seen)


def check_on_unknown(on_unknown: str) -> None:
    """Refuse words other than those of `OnUnknown`.

    Raises:
        InvalidConfig: another word.
    """
    if on_unknown not in ("fallback", "warn", "raise"):
        raise InvalidConfig(f'on_unknown={on_unknown!r} must be "fallback", "warn" or "raise"')
