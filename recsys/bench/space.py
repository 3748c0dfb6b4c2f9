"""The space that `recsys-bench tune` searches, as TOML.

    [space]
    n_interest = [0, 15, 30]                                     # one of these
    "ranker.n_leaves" = { low = 15, high = 127, log = true }     # whole ends: whole numbers between them
    "contrastive.tower_learning_rate" = { low = 1e-4, high = 1e-2, log = true }
    retriever.vector = { low = 100, high = 400, step = 50 }      # dots need no quotes

Keys are those of `recsys fit --config`. Owns their meaning and the check that the configuration takes every end and
every choice; who draws from it is `tune`.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import InvalidConfig

PARTS = {"low", "high", "log", "step"}
Value = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones where both are whole.

    Attributes:
        low: smallest.
        high: largest.
        log: drawn evenly on a logarithmic axis.
        step: distance between two numbers that can be drawn; None for any (whole numbers: 1).
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Space = Mapping[str, Range | tuple[Value, ...]]
"""By dotted key: a range, or choices."""


def read_space(path: str | Path, config: RecommenderConfig | None = None) -> Space:
    """Read a file; see `space_from_dict`.

    Raises:
        InvalidConfig: it cannot be read, is no TOML, has no table [space] or further tables, or as `space_from_dict`.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"space {path} cannot be read: {error}") from error
    if set(values) != {"space"} or not isinstance(values["space"], dict):
        raise InvalidConfig(f"space {path} must hold one table, [space]; it has: {', '.join(values) or 'nothing'}")
    return space_from_dict(values["space"], config)


def space_from_dict(values: Mapping[str, Any], config: RecommenderConfig | None = None) -> Space:
    """A space from lists of choices and tables of `low`, `high`, `log`, `step`, by dotted or nested keys.

    Args:
        values: what stands under [space].
        config: what the rest of the settings will be; defaults where None.

    Raises:
        InvalidConfig: nothing is declared, a range is none, a key is unknown, or the configuration refuses an end of
            a range or a choice.
    """
    space = {key: _part(key, value) for key, value in _flat(values, "")}
    if not space:
        raise InvalidConfig('the space is empty; declare keys such as "ranker.n_leaves" = { low = 15, high = 127 }')
    base = config or RecommenderConfig()
    for key, part in space.items():
        for value in (part.low, part.high) if isinstance(part, Range) else part:
            try:
                with_values(base, {key: value})
            except InvalidConfig as error:
                raise InvalidConfig(f"space: {error}") from error
    return space


def with_values(config: RecommenderConfig, values: Mapping[str, Value]) -> RecommenderConfig:
    """The configuration with some keys set.

    Raises:
        InvalidConfig: a key is unknown or a value is refused.
    """
    nested: dict[str, Any] = asdict(config)
    for key, value in values.items():
        *above, last = key.split(".")
        table = nested
        for name in above:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise InvalidConfig(f"unknown key {key}: {name} is no table")
        table[last] = value
    return config_from_dict(nested)


def value_of(config: RecommenderConfig, key: str) -> Any:
    """What the configuration has under a dotted key."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def holds(part: Range | tuple[Value, ...], value: Any) -> bool:
    """Whether a value can be drawn, steps aside."""
    if isinstance(part, Range):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and part.low <= value <= part.high and (not part.whole or value == int(value))
    return any(choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in part)


def _flat(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and not PARTS & set(value):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _part(key: str, value: Any) -> Range | tuple[Value, ...]:
    if isinstance(value, list):
        if not value or not all(isinstance(choice, bool | int | float | str) for choice in value):
            raise InvalidConfig(f"space: {key} must list numbers, texts or true and false, got {value!r}")
        return tuple(value)
    if not isinstance(value, Mapping) or not {"low", "high"} <= set(value) or not set(value) <= PARTS:
        raise InvalidConfig(f"space: {key} must be a list of choices, or have low, high and perhaps log or step")
    numbers = [value[name] for name in ("low", "high", "step") if name in value]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise InvalidConfig(f"space: {key} must have numbers, got {dict(value)!r}")
    part = Range(**value)
    if part.low > part.high or (part.log and part.low <= 0) or (part.step is not None and part.step <= 0):
        raise InvalidConfig(f"space: {key} must have low up to high, above 0 with log, and a step above 0")
    if part.log and part.step is not None:
        raise InvalidConfig(f"space: {key} has log and step; take one of them")
    if part.whole and isinstance(part.step, float):
        raise InvalidConfig(f"space: {key} has whole ends, so step must be whole, got {part.step}")
    return part
