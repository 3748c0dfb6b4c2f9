"""What is asked: a data set, validated and cut, and which pairs of each cut count as right.

Owns the protocols. The cuts are made by `recsys/splits.py`; who answers is `systems`, what the answers are worth
`measure`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import polars as pl

from recsys import splits
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.device import resolve_device
from recsys.errors import InvalidConfig, InvalidData
from recsys.notes import Notes
from recsys.pipeline import decide_seen
from recsys.schema import Tables, validate
from recsys.splits import Split, SplitKind

DEPTH = 100
"""How many candidates of each system count for recall@100."""

REPEATS = "repeats counted"
NEW_ONLY = "new items only"
COLD_USERS = "users without history"
KS = (5, 10, 20)

Repeats = Literal["auto", "yes", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Which pairs count as right.

    Attributes:
        name: "repeats counted", "new items only" or "users without history".
        filter_seen: whether the systems leave out what a user has already taken.
        truth: distinct `user_id`, `item_id` to be found. Sorted. Under "users without history" nobody has a row in
            train, under the others everybody has.
    """

    name: str
    filter_seen: bool
    truth: pl.DataFrame

    @property
    def users(self) -> pl.Series:
        """Whom the systems are asked for, sorted."""
        return self.truth["user_id"].unique().sort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut, and what is asked about it.

    Attributes:
        place: from 0, oldest first.
        split: train and test.
        protocols: those that have anything to be found.
    """

    place: int
    split: Split
    protocols: tuple[Protocol, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A data set, ready to be asked about: the same for every system.

    Attributes:
        dataset: name of the data set.
        tables: all of it, validated.
        cuts: at least one; several for rolling splits.
        repeats: whether pairs that a user has had before can be right.
        config: of our system; its `seed` also draws the bootstrap samples.
        k: the main length of the lists.
        ks: all lengths, ascending.
        settings: how it was cut, for the result.
        notes: sentences that belong beside every number.
        segments: columns of items and users to report by; without any, the first few that make groups.
    """

    dataset: str
    tables: Tables
    cuts: tuple[Cut, ...]
    repeats: bool
    config: RecommenderConfig
    k: int
    ks: tuple[int, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    segments: tuple[str, ...] = ()

    @property
    def split(self) -> Split:
        """The first cut's split."""
        return self.cuts[0].split

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The first cut's protocols."""
        return self.cuts[0].protocols

    @property
    def depth(self) -> int:
        """The longest list that is looked at."""
        return max(self.ks)


def prepare(
    dataset: Dataset,
    config: RecommenderConfig | None = None,
    *,
    split: SplitKind = "time",
    test_share: float = 0.1,
    min_items: int = 5,
    n_cuts: int = 3,
    repeats: Repeats = "auto",
    k: int = 10,
    ks: Sequence[int] = KS,
    segments: Sequence[str] = (),
    progress: bool = False,
) -> Prepared:
    """Validate, cut, and decide what counts.

    "new items only" is always measured, unless no test pair is new. Test users without history in train are asked
    about on their own.

    Args:
        dataset: the tables.
        config: of our system.
        split: "time" cuts everybody at one moment, "rolling" at several, "leave-last-out" holds out each user's last
            interaction, "random" draws rows.
        test_share: share of the interactions to test on; not for "leave-last-out".
        min_items: distinct items a test user has, for "leave-last-out".
        n_cuts: for "rolling".
        repeats: whether pairs that a user has had before count too, under a protocol of their own; "auto" counts them
            where they are as common as `config.repeat_limit` says.
        k: main length of the lists, 1 to 100.
        ks: further lengths.
        segments: columns of items and users whose groups are reported apart; by default the first few that make some.
        progress: show bars on stderr.

    Raises:
        InvalidData: a table breaks a rule, or there is nothing to test.
        InvalidConfig: a value is out of its range.
        DeviceUnavailable: the configured device is not there.
    """
    for length in (k, *ks):
        if not 1 <= length <= DEPTH:
            raise InvalidConfig(f"k is {length}; it must lie between 1 and {DEPTH}, the depth of the candidates")
    if repeats not in ("auto", "yes", "no"):
        raise InvalidConfig(f'repeats is {repeats!r}; it must be "auto", "yes" or "no"')
    config = replace(config or RecommenderConfig(), progress=progress)
    resolve_device(config.device)  # our fit would find out too, but minutes later
    tables = validate(dataset.interactions, dataset.items, dataset.users, unknown_items=config.unknown_items)
    _check_segments(segments, tables)
    common = not decide_seen(tables.interactions, config, Notes(()))
    counted = common if repeats == "auto" else repeats == "yes"
    found = splits.split_all(
        tables.interactions, split,
        test_share=test_share, min_items=min_items, repeats=counted, n_cuts=n_cuts, seed=config.seed,
    )  # fmt: skip
    asked = [(cut, made) for cut in found if (made := _protocols(cut, repeats=counted))]
    if not asked:
        raise _nothing(found[-1])
    cuts = tuple(Cut(place=place, split=cut, protocols=made) for place, (cut, made) in enumerate(asked))
    settings = {"test_share": test_share, "min_items": min_items, "n_cuts": n_cuts, "repeats": repeats}
    return Prepared(
        dataset=dataset.name,
        tables=tables,
        cuts=cuts,
        repeats=counted,
        config=config,
        k=k,
        ks=tuple(sorted({k, *ks})),
        settings=settings,
        segments=tuple(segments),
        notes=(
            *tables.notes,
            *dict.fromkeys(note for cut in found for note in cut.notes),
            *(
                [f"{len(found) - len(cuts)} of {len(found)} cuts have nothing to test."]
                if len(cuts) < len(found)
                else []
            ),
            *_words(cuts, counted),
        ),
    )


def _check_segments(names: Sequence[str], tables: Tables) -> None:
    known = {*tables.items.columns, *(() if tables.users is None else tables.users.columns)} - {"item_id", "user_id"}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidConfig(f"segments: no column {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _protocols(cut: Split, *, repeats: bool) -> tuple[Protocol, ...]:
    """The protocols that have anything to be found; none where no pair that counts is of a user with history."""
    pairs = cut.test.select("user_id", "item_id").unique().sort("user_id", "item_id")
    known = pairs.join(cut.train, on="user_id", how="semi", maintain_order="left")
    cold = pairs.join(cut.train, on="user_id", how="anti", maintain_order="left")
    new = known.join(cut.train, on=["user_id", "item_id"], how="anti", maintain_order="left")
    if not (new.height or (repeats and known.height)):
        return ()
    return (
        *([Protocol(name=REPEATS, filter_seen=False, truth=known)] if repeats and known.height else []),
        *([Protocol(name=NEW_ONLY, filter_seen=True, truth=new)] if new.height else []),
        *([Protocol(name=COLD_USERS, filter_seen=True, truth=cold)] if cold.height else []),
    )


def _nothing(cut: Split) -> InvalidData:
    return InvalidData(
        table="interactions",
        rule=f"the {cut.kind} split leaves nothing to test: no pair that counts is of a user with history in train",
        count=cut.test.height,
        total=cut.train.height + cut.test.height,
        remedy="bring more interactions, take the other split, a larger test_share or a smaller min_items",
    )


def _words(cuts: Sequence[Cut], repeats: bool) -> tuple[str, str]:
    """Who is in which table, and whether repeats count."""
    n_users = sum(cut.split.test["user_id"].n_unique() for cut in cuts)
    n_cold = sum(len(asked.users) for cut in cuts for asked in cut.protocols if asked.name == COLD_USERS)
    return (
        f"{n_cold} of {n_users} test users have no history in train; they get what is popular and have a table of "
        "their own.",
        f"Repeat purchases {'count as hits under' if repeats else 'do not count; everything is'} "
        f"{repr(REPEATS) if repeats else repr(NEW_ONLY)}.",
    )
