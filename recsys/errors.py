"""The exceptions of the package; owns their tree and the wording of the ones that carry data.

```
RecsysError
├── InvalidData(ValueError)           a table breaks a rule: which one, where, and what to do
├── InvalidConfig(ValueError)         a setting is unknown, out of range or contradicts another
├── NotFitted(RuntimeError)           a method needs a fitted recommender
├── UnknownUsers(LookupError)         users who were not there at fit
├── DeviceUnavailable(RuntimeError)   the asked-for accelerator is not there
└── BundleError
    ├── BundleNotFound                nothing is published at that place
    ├── BundleCorrupt                 a file's length or checksum is not the recorded one
    ├── BundleIncompatible            written in a format that this version does not read
    ├── BundleLocked                  another writer holds the store
    └── PublishRefused                a gate refused the new bundle
```

`indexing` and `ranking` do not know this module: they raise plain ValueError and RuntimeError.
"""

from collections.abc import Sequence
from typing import Any

SHOWN = 5
"""How many offending rows or users a message shows."""

ROW_WIDTH = 80
"""Characters after which a shown row is cut."""


class RecsysError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidData(RecsysError, ValueError):
    """A table breaks a rule.

    Args:
        table: which table, for example "interactions".
        rule: the rule that is broken, as a clause: "user_id must not be null".
        column: the offending column, where there is one.
        count: how many rows break the rule.
        total: how many rows the table has.
        rows: offending values or rows, first ones first; the first five are kept and shown.
        remedy: what to do about it, as a sentence without its full stop.
    """

    def __init__(
        self,
        *,
        table: str,
        rule: str,
        remedy: str,
        column: str | None = None,
        count: int | None = None,
        total: int | None = None,
        rows: Sequence[Any] = (),
    ) -> None:
        self.table = table
        self.rule = rule
        self.remedy = remedy
        self.column = column
        self.count = count
        self.total = total
        self.rows = tuple(rows[:SHOWN])
        super().__init__(self._message())

    def _message(self) -> str:
        place = self.table if self.column is None else f"{self.table}.{self.column}"
        parts = [f"{place}: {self.rule}"]
        if self.count is not None:
            parts.append(_how_many(self.count, self.total))
        if self.rows:
            parts.append("first: " + "; ".join(_shorten(row) for row in self.rows))
        parts.append(self.remedy)
        return ". ".join(parts) + "."


class InvalidConfig(RecsysError, ValueError):
    """A setting is unknown, out of its range, or contradicts another one."""


class NotFitted(RecsysError, RuntimeError):
    """A method was called that needs `fit` or `load` before it."""


class UnknownUsers(RecsysError, LookupError):
    """Users were asked for who had no interactions at fit.

    Args:
        users: the unknown user ids; `count` is their number, the first five are kept in `users`.
    """

    def __init__(self, users: Sequence[Any]) -> None:
        self.count = len(users)
        self.users = tuple(users[:SHOWN])
        noun = "user was" if self.count == 1 else "users were"
        shown = ", ".join(_shorten(user) for user in self.users)
        more = "" if self.count <= SHOWN else ", ..."
        super().__init__(
            f"{self.count} {noun} not in the interactions at fit: {shown}{more}. "
            "Pass their histories to recommend_for, or leave them out."
        )


class DeviceUnavailable(RecsysError, RuntimeError):
    """The device that was asked for is not on this machine."""


class BundleError(RecsysError):
    """Base of everything that can be wrong with a stored bundle."""


class BundleNotFound(BundleError):
    """No bundle is published at that place, or not the named one."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, or its length or checksum is not the recorded one."""


class BundleIncompatible(BundleError):
    """The bundle has a format, or needs a library version, that this package does not read."""


class BundleLocked(BundleError):
    """Another process is writing to the store."""


class PublishRefused(BundleError):
    """A gate refused the new bundle; the current one is untouched.

    Attributes:
        result: of a run whose gates refused what it built, the `RebuildResult`; else None.
    """

    result: Any = None


def _how_many(count: int, total: int | None) -> str:
    noun = "row" if (count if total is None else total) == 1 else "rows"
    return f"{count:,} {noun}" if total is None else f"{count:,} of {total:,} {noun}"


def _shorten(value: Any) -> str:
    # Cut before repr: an offending id can be megabytes long.
    shown = repr(value[:ROW_WIDTH]) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= ROW_WIDTH else shown[: ROW_WIDTH - 3] + "..."
