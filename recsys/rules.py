"""What a shop wants of a list besides relevance: `Rules`, checked against the catalogue and brought to item rows.

How a list is arranged by them is `ranking/rerank.py`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ranking.rerank import ListRules, rerank
from recsys.arguments import positive
from recsys.catalogue import Catalogue
from recsys.columns import normalise_timestamps
from recsys.errors import InvalidConfig, InvalidData
from recsys.fitted import Fitted
from recsys.requests import item_rows
from recsys.snapshot import People

DAY = 86_400.0
PIN = {"item_row": pl.Int32, "position": pl.Int32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What lists shall be besides relevant.

    Columns are those of the items table; "category" is the last of an item's `categories`.
    Relevance is the ranker's score, scaled to [0, 1] over a user's candidates; rules choose among all of them.

    Attributes:
        diversity: in [0, 1). Each place goes to the item of most (1 - diversity) * relevance - diversity * likeness to
            the nearest item of the list (maximal marginal relevance); 0 leaves the order untouched.
        caps: column -> most items of one value in a list; items without a value are not capped.
        boosts: column -> value -> factor above 0 of the relevance, `{"brand": {"Acme": 1.5}, "item_id": {"a7": 0.5}}`;
            factors of an item multiply.
        pins: position (1-based) -> item id. It stands exactly there and nowhere else, or last in a shorter list;
            people who may not be shown it do not get it.
        where: column -> allowed values, `{"brand": ["Acme", "Zenith"]}`, or, for numbers and times, a tuple of least
            and most, `{"price": (None, 20)}`; "categories" -> any of an item's. Applied inside retrieval, so that lists
            stay full. Items without a value are out.
        freshness: in [0, 1], how much of its relevance an item loses with age; it loses half of that every `half_life`.
            Items without `created_at` lose nothing.
        half_life: in days.
        calibration: in [0, 1), how much category shares of a list are drawn to those of the user's history.

    Raises:
        InvalidConfig: a value is outside its range.
    """

    diversity: float = 0.0
    caps: Mapping[str, int] = field(default_factory=dict)
    boosts: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)
    pins: Mapping[int, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    freshness: float = 0.0
    half_life: float = 30.0
    calibration: float = 0.0

    def __post_init__(self) -> None:
        for name in ("diversity", "calibration"):
            if not (_is_number(getattr(self, name)) and 0.0 <= getattr(self, name) < 1.0):
                raise InvalidConfig(f"rules.{name}={getattr(self, name)!r} must lie in [0, 1); 0 leaves it out")
        if not (_is_number(self.freshness) and 0.0 <= self.freshness <= 1.0):
            raise InvalidConfig(f"rules.freshness={self.freshness!r} must lie in [0, 1]; 0 leaves it out")
        if not (_is_number(self.half_life) and 0.0 < self.half_life < math.inf):
            raise InvalidConfig(f"rules.half_life={self.half_life!r} is in days, it must be above 0")
        for name in ("caps", "boosts", "pins", "where"):
            if not isinstance(getattr(self, name), Mapping):
                raise InvalidConfig(f"rules.{name}={getattr(self, name)!r} must be a mapping")
        for column, most in self.caps.items():
            positive(most, f"rules.caps[{column!r}]")
        for column, factors in self.boosts.items():
            _check_factors(column, factors)
        for position in self.pins:
            positive(position, "rules.pins: position")
        pinned = list(self.pins.values())
        if any(pinned.count(item) > 1 for item in pinned):
            raise InvalidConfig(f"rules.pins={dict(self.pins)!r}: an item can be pinned once; leave one of them out")


@dataclass(frozen=True, slots=True)
class ReadyRules:
    """Rules for one catalogue.

    Attributes:
        lists: how lists are arranged.
        pins: `item_row`, `position`.
        allowed: bool (n_items,), the items that `where` leaves.
        is_filtered: whether there is a `where`.
    """

    lists: ListRules
    pins: pl.DataFrame
    allowed: npt.NDArray[np.bool_]
    is_filtered: bool


def prepare_rules(rules: Rules, state: Fitted, k: int) -> ReadyRules:
    """Check the rules against the catalogue.

    Raises:
        InvalidConfig: a column that is not there or has nothing to go by, a value of another type than its column, or
            a position beyond `k`.
        InvalidData: an item or a value that no item has.
    """
    if not isinstance(rules, Rules):
        raise InvalidConfig(f"rules={rules!r} must be a Rules, such as Rules(diversity=0.3)")
    catalogue, towers = state.catalogue, state.towers
    beyond = [position for position in rules.pins if position > k]
    if beyond:
        raise InvalidConfig(f"rules.pins: position {beyond[0]} lies beyond k={k}; ask for longer lists or leave it out")
    rows = item_rows(catalogue, rules.pins.values(), "rules.pins")
    pins = pl.DataFrame({"item_row": rows, "position": list(rules.pins)}, schema=PIN)
    categories = catalogue.groups["category"].to_numpy().astype(np.int64)
    if rules.calibration and len(np.unique(categories)) < 2:
        raise InvalidConfig("rules.calibration: the items have no categories to go by; set it to 0")
    lists = ListRules(
        vectors=towers.item_vectors,
        comparable=towers.searchable,
        categories=categories,
        diversity=rules.diversity,
        calibration=rules.calibration,
        caps=tuple((_codes(_column(catalogue, name, "caps")), most) for name, most in rules.caps.items()),
        boosts=_boosts(rules, catalogue) if rules.boosts else None,
        freshness=_freshness(rules, catalogue, state.as_of) if rules.freshness else None,
    )
    return ReadyRules(lists, pins, _allowed(rules, catalogue), bool(rules.where))


def arrange(
    frame: pl.DataFrame, people: People, k: int, ready: ReadyRules, *, blocked: npt.NDArray[np.bool_], hide_seen: bool
) -> pl.DataFrame:
    """The `k` rows of each user that the rules choose, as `ranking.rerank.rerank`, with `is_fallback` for all of them.

    Args:
        frame: scored candidates with `is_fallback`.
        people: whose they are.
        k: list length.
        ready: the rules.
        blocked: bool (n_items,), items that nobody may be shown, pinned or not.
        hide_seen: whether what a user has taken is hidden from him, pinned or not.
    """
    shown = ready.pins.filter(~pl.Series(blocked).gather(ready.pins["item_row"]))
    pins = people.moments.select("user_row").join(shown, how="cross")
    if hide_seen:
        pins = pins.join(people.history, on=["user_row", "item_row"], how="anti")
    listed = rerank(frame, k, ready.lists, pins=pins, history=people.history)
    if ready.is_filtered:
        words = pl.concat_str("rules", pl.lit("where"), separator=", ", ignore_nulls=True)
        listed = listed.with_columns(rules=words)
    known = pl.Series(people.histories.lengths > 0)
    return listed.with_columns(is_fallback=~known.gather(listed["user_row"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_factors(column: str, factors: Any) -> None:
    if not isinstance(factors, Mapping):
        raise InvalidConfig(f"rules.boosts[{column!r}]={factors!r} must be a mapping from values to factors")
    for value, factor in factors.items():
        if not (_is_number(factor) and 0.0 < factor < math.inf):
            raise InvalidConfig(
                f"rules.boosts[{column!r}][{value!r}]={factor!r} must be above 0; use where or deny_items to leave out"
            )


def _column(catalogue: Catalogue, name: str, rule: str) -> pl.Series:
    """A column of the items by the name that rules use."""
    items = catalogue.items
    if name in items.columns and name != "categories":
        return items[name]
    if name == "category":
        return items["categories"].list.last()
    known = [column for column in items.columns if column != "categories"]
    raise InvalidConfig(
        f'rules.{rule}: the items have no column {name!r}; there are: {", ".join(known)} and "category"'
    )


def _codes(column: pl.Series) -> npt.NDArray[np.int64]:
    """A number for each value, -1 for null, int64 (n_items,)."""
    return (column.cast(pl.String).rank("dense").cast(pl.Int64).fill_null(0) - 1).to_numpy()


def _boosts(rules: Rules, catalogue: Catalogue) -> npt.NDArray[np.float64]:
    """The product of each item's factors, (n_items,)."""
    boosts = np.ones(len(catalogue))
    for name, factors in rules.boosts.items():
        weights = [float(factor) for factor in factors.values()]
        if name == "item_id":
            boosts[item_rows(catalogue, list(factors), "rules.boosts")] *= weights
        else:
            column = _column(catalogue, name, "boosts")
            values = _values(column, name, factors, "boosts")
            boosts *= column.replace_strict(values, weights, default=1.0, return_dtype=pl.Float64).to_numpy()
    return boosts


def _freshness(rules: Rules, catalogue: Catalogue, as_of: float) -> npt.NDArray[np.float64]:
    """What age leaves of each item's relevance, (n_items,)."""
    created = catalogue.items["created_at"]
    if created.null_count() == len(created):
        raise InvalidConfig("rules.freshness: no item has created_at to go by; set it to 0")
    days = (as_of - created.dt.epoch("us") / 1e6) / DAY
    halves = days.clip(lower_bound=0.0).fill_null(0.0).to_numpy() / rules.half_life
    return np.asarray(1.0 - rules.freshness + rules.freshness * 0.5**halves)


def _allowed(rules: Rules, catalogue: Catalogue) -> npt.NDArray[np.bool_]:
    """The items that fulfil every condition of `where`, (n_items,)."""
    allowed = np.ones(len(catalogue), dtype=np.bool_)
    for name, wanted in rules.where.items():
        listed = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
        if name == "categories":
            inside = _in_any(catalogue.items["categories"], listed)
        else:
            column = _column(catalogue, name, "where")
            if isinstance(wanted, tuple) and (column.dtype.is_numeric() or column.dtype.is_temporal()):
                inside = _inside(column, name, wanted)
            else:
                inside = column.is_in(_values(column, name, listed, "where").implode())
        allowed &= inside.fill_null(value=False).to_numpy()
    return allowed


def _in_any(categories: pl.Series, wanted: list[Any]) -> pl.Series:
    """Which items have one of these categories, at any place."""
    values = _values(categories.explode().drop_nulls(), "categories", wanted, "where")
    return categories.list.eval(pl.element().is_in(values.implode())).list.any()


def _inside(column: pl.Series, name: str, bounds: tuple[Any, ...]) -> pl.Series:
    """Which values lie between two bounds, both included; None for no bound."""
    if len(bounds) != 2:
        raise InvalidConfig(f"rules.where[{name!r}]={bounds!r} must be (least, most), or a list of values")
    inside = column.is_not_null()
    if not inside.any():
        raise InvalidConfig(f"rules.where[{name!r}]: no item has a value there to go by; leave it out")
    if any(isinstance(bound, float) and math.isnan(bound) for bound in bounds):
        raise InvalidConfig(f"rules.where[{name!r}]={bounds!r}: NaN is no bound; give None where there is none")
    try:
        least, most = (_bound(column, bound) for bound in bounds)
        if least is not None and most is not None and not least <= most:
            raise InvalidConfig(f"rules.where[{name!r}]={bounds!r}: nothing lies between them; give (least, most)")
        inside = inside if least is None else inside & (column >= least)
        return inside if most is None else inside & (column <= most)
    except (TypeError, NotImplementedError, InvalidData, pl.exceptions.PolarsError) as error:
        raise _another_type(column, name, bounds, "where") from error


def _bound(column: pl.Series, bound: Any) -> Any:
    """A bound as a value of its column; points in time in any form that the tables take, without a zone UTC."""
    if bound is None or not isinstance(column.dtype, pl.Datetime):
        return bound
    return normalise_timestamps(pl.Series("bound", [bound]), table="rules.where")[0]


def _values(column: pl.Series, name: str, values: Iterable[Any], rule: str) -> pl.Series:
    """Values of a column as its type, every one of which some item has."""
    listed = list(values)
    try:
        asked = pl.Series(name, listed) if listed else pl.Series(name, [], dtype=column.dtype)
        given = asked.cast(column.dtype)
        same = given.cast(asked.dtype) == asked if asked.dtype.is_float() else given.is_not_null()  # 4.9 is no 4
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise _another_type(column, name, listed, rule) from error
    unknown = asked.filter(~(same & given.is_in(column.implode())).fill_null(value=False))
    if len(unknown):
        raise InvalidData(
            table=f"rules.{rule}",
            column=name,
            rule="names values that no item has",
            count=len(unknown),
            rows=unknown.head(5).to_list(),
            remedy="check their spelling, or leave them out",
        )
    return given


def _another_type(column: pl.Series, name: str, values: Any, rule: str) -> InvalidConfig:
    return InvalidConfig(f"rules.{rule}[{name!r}]: {values!r} cannot be compared with values of type {column.dtype}")
