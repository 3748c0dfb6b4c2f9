"""Scenarios: the arguments of a run as TOML.

    data = "$RECSYS_DATA/movielens-small"    # a name or a folder; variables of the environment are filled in
    split = "time"
    systems = ["popular", "two-stage"]
    ignore_columns = ["tmdb_vote_count"]
    [config]                                  # as in `recsys fit --config`
    n_interest = 0

Owns the keys; what they mean is `run`'s and `recsys/config.py`'s.
"""

import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.errors import InvalidConfig

KINDS: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "split": (str,),
    "systems": (list,),
    "k": (int,),
    "ks": (list,),
    "test_share": (int, float),
    "min_items": (int,),
    "n_cuts": (int,),
    "repeats": (str,),
    "segments": (list,),
    "n_samples": (int,),
    "ignore_columns": (list,),
    "config": (dict,),
}
ELEMENTS = {"ks": int}  # of the lists; the others hold strings


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a file names, as it is given; the rest keeps its default.

    Attributes:
        values: by key, without `config`.
        config: settings of our system, for `recsys.config.config_from_dict`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def read_scenario(path: str | Path) -> Scenario:
    """Read a scenario.

    Raises:
        InvalidConfig: the file cannot be read or is no TOML, a key is unknown, a value has the wrong type, or `data`
            names a variable that is not set.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"scenario {path} cannot be read: {error}") from error
    for key, value in values.items():
        if key not in KINDS:
            near = difflib.get_close_matches(key, KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(KINDS)}"
            raise InvalidConfig(f"scenario {path}: unknown key {key}; {hint}")
        if not isinstance(value, KINDS[key]) or isinstance(value, bool):
            raise InvalidConfig(f"scenario {path}: {key} must be {KINDS[key][0].__name__}, got {value!r}")
        if isinstance(value, list):
            kind = ELEMENTS.get(key, str)
            wrong = [part for part in value if not isinstance(part, kind) or isinstance(part, bool)]
            if wrong:
                raise InvalidConfig(f"scenario {path}: {key} must hold {kind.__name__} values, got {wrong[0]!r}")
    config = values.pop("config", {})
    if "data" in values:
        values["data"] = _filled(values["data"], path)
    return Scenario(values=values, config=config)


def _filled(data: str, path: str | Path) -> str:
    filled = os.path.expandvars(data)
    if "$" in filled:
        raise InvalidConfig(f"scenario {path}: data = {data!r} names a variable of the environment that is not set")
    return filled
