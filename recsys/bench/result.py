"""What a benchmark found: plain values, and the results folder that holds them.

Owns the schema of every file in a results folder, and reading and writing it; the numbers come from `measure`.

    FOLDER/result.json         `BenchResult.to_dict()`: everything but the long tables, see the classes below
    FOLDER/per_user.parquet    protocol, cut, system, user_id, then one Float64 column a metric: the columns are the
                               names in `BenchResult.user_metrics`, such as "ndcg@10"; null where a metric says nothing
                               about a user (popularity lift without history)
    FOLDER/lists.parquet       protocol, cut, system, user_id, item_id, rank (Int32, from 1), score (Float64)
    FOLDER/candidates.parquet  protocol, cut, system, user_id, item_id, rank (Int32, in the order of the blend), score
                               (Float64, of the blend), source (names joined by "+", as `Recommender.retrieve` gives
                               them); only of systems with two stages, under the name of the full system: "two-stage"
                               holds what its ranker was given
    FOLDER/truth.parquet       protocol, cut, user_id, item_id, cold_item (Boolean: no interaction in train)

Common columns: `protocol` is one of "repeats counted", "new items only", "users without history" (the name of a
`Table`); `cut` is Int32 from 0, the place in `BenchResult.cuts` (always 0 but for rolling splits); `system` is a
`Row.system`; ids have the type of the data. Every file is sorted by its columns in the order of above, lists and
candidates by rank within a user.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl

from recsys.errors import InvalidData
from recsys.splits import SplitKind

FORMAT = 3
RESULT = "result.json"
REPORT = "report.html"
FRAMES = ("per_user", "lists", "candidates", "truth")

CANDIDATE_RECALL = "candidate_recall@100"
COLD_RECALL = "cold_recall@100"
CEILING = "ceiling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over users (or a number over all lists), and the ends of its 95% bootstrap interval; None without one."""

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system in a table.

    Attributes:
        system: its name.
        metrics: by name and depth. Means over users with intervals: "ndcg@10", "recall@10", "precision@10",
            "hitrate@10", "map@10", "mrr@10" at every depth of `BenchResult.ks`, and "novelty@k", "ild@k",
            "popularity_lift@k", "serendipity@k" at `k`; of the candidates `CANDIDATE_RECALL`, `COLD_RECALL` (of what
            has no interaction in train; without value where nothing is) and `CEILING` (of all that the second stage
            chose from; without value where there is none). Over all lists, without interval: "coverage@k", "gini@k".
        short_lists: users with fewer than k items.
        calibration: `n`, `base_rate`, `ece`, `brier`, `log_loss`, `reliability` [[mean probability, share of
            positives, rows]] of the lists' scores, where the system says that they are probabilities; else None.
        fit_seconds: wall clock; rows that come from one fit all say its time.
        ask_seconds: for all users.
        users_per_second: while asked for the lists.
        peak_mb: of the whole process (see `profiling.Usage`), over fit and lists.
    """

    system: str
    metrics: dict[str, Estimate]
    short_lists: int
    calibration: dict[str, Any] | None
    fit_seconds: float
    ask_seconds: float
    users_per_second: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`system` minus `other`, user by user.

    Attributes:
        system: the one that is judged.
        other: what it is compared with.
        metric: such as "ndcg@10".
        difference: mean over users.
        low: lower end of its 95% bootstrap interval.
        high: upper end.
        p: two-sided, uncorrected.
        p_adjusted: after Holm's correction for all comparisons of the table.
        verdict: "better", "worse" or "undecided", by `p_adjusted` below 0.05; "higher" or "lower" of a metric that is
            no merit, such as novelty.
    """

    system: str
    other: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One system on a part of the users, or of the pairs.

    Attributes:
        segment: what divides, such as "history length", "item popularity", "items", "user: country", "item: brand".
        value: which part, such as "1-4" or "cold".
        system: its name.
        n_users: users in the part (with at least one pair in it).
        n_pairs: pairs in the part.
        metrics: "ndcg@k" and "recall@k", for users with what they have in the part as their truth.
    """

    segment: str
    value: str
    system: str
    n_users: int
    n_pairs: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """How unequally a system treats groups.

    Attributes:
        kind: "metric gap" (best minus worst group's ndcg@k among groups of users) or "exposure" (of a group of items).
        segment: what divides, as in `Segment`.
        system: its name.
        value: the gap; for "exposure" the group's share of the places in all lists.
        reference: for "exposure" the group's share of the interactions in train; None for "metric gap".
        groups: for "metric gap" [best, worst], for "exposure" [the group].
    """

    kind: str
    segment: str
    system: str
    value: float
    reference: float | None
    groups: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All systems under one protocol, over all cuts.

    Attributes:
        protocol: its name.
        filter_seen: whether the systems left out what a user had already taken.
        n_users: users tested (a user of two cuts counts twice).
        n_pairs: pairs to be found.
        n_cold_pairs: those of them whose item has no interaction in train.
        rows: one a system.
        differences: of our rows to the others, and of both stages to the first alone.
        segments: by segment, value, system.
        fairness: by kind, segment, system.
    """

    protocol: str
    filter_seen: bool
    n_users: int
    n_pairs: int
    n_cold_pairs: int
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    segments: tuple[Segment, ...] = ()
    fairness: tuple[Fairness, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CutInfo:
    """One cut: exclusive end of what was known at fit (ISO 8601, UTC), hash of its test pairs, rows on each side."""

    as_of: str
    test_hash: str
    train: int
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Something that makes the numbers suspicious.

    Attributes:
        kind: "leak" (a column or a feature knows the future) or "too good to be true".
        what: the column, feature or system.
        message: a sentence with the numbers behind it and what to do.
    """

    kind: str
    what: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Everything that was measured, and what one needs to measure it again.

    Attributes:
        dataset: name of the data set.
        counts: `interactions`, `items` and `users` of the whole, `train` and `test` interactions of the first cut.
        description: `density`, `repeat_share`, `cold_user_share` (of test users), `cold_item_share` (of test pairs),
            `first`, `last` (ISO 8601), `days`, `events` (rows by kind).
        split: "time", "rolling", "leave-last-out" or "random".
        repeats: whether repeated pairs could count as hits.
        cuts: one, or several for "rolling".
        test_hash: of all test pairs; equal hashes, equal test pairs.
        k: the main depth.
        ks: all depths, ascending, `k` among them.
        n_samples: of the bootstrap.
        seed: of everything random.
        user_metrics: names of the metrics of which each user has a value: the columns of `per_user.parquet`.
        systems: names, in the order of the rows.
        config: `RecommenderConfig` as nested dictionaries.
        settings: the arguments of the run, such as `test_share`.
        versions: of Python and the libraries.
        machine: `platform` and `cores`.
        notes: what was mapped, dropped and decided, as sentences.
        flags: what is suspicious; empty is good.
        tables: one a protocol.
    """

    dataset: str
    counts: dict[str, int]
    description: dict[str, Any]
    split: SplitKind
    repeats: bool
    cuts: tuple[CutInfo, ...]
    test_hash: str
    k: int
    ks: tuple[int, ...]
    n_samples: int
    seed: int
    user_metrics: tuple[str, ...]
    systems: tuple[str, ...]
    config: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str | int]
    notes: tuple[str, ...]
    flags: tuple[Flag, ...]
    tables: tuple[Table, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes of this class and, in `tables`, of the others, with `format`, ready for JSON."""
        return {"format": FORMAT, **_finite(asdict(self))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` and JSON made of a result.

        Raises:
            InvalidData: another format.
        """
        if values.get("format") != FORMAT or not {entry.name for entry in fields(cls)} <= set(values):
            raise InvalidData(
                table=RESULT,
                rule=f"the format is {values.get('format')!r}, this version reads {FORMAT}",
                remedy="run recsys-bench again",
            )
        given = {entry.name: values[entry.name] for entry in fields(cls)}
        given |= {name: tuple(given[name]) for name in ("ks", "user_metrics", "systems", "notes")}
        given["cuts"] = tuple(CutInfo(**cut) for cut in given["cuts"])
        given["flags"] = tuple(Flag(**flag) for flag in given["flags"])
        given["tables"] = tuple(_table(table) for table in given["tables"])
        return cls(**given)


@dataclass(frozen=True)
class ResultFolder:
    """A results folder, read as it is needed.

    Attributes:
        path: the folder.
    """

    path: Path

    @cached_property
    def result(self) -> BenchResult:
        """What `result.json` holds."""
        return read_result(self.path)

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """See the head of this module, as for the other frames."""
        return self._frame("per_user")

    @cached_property
    def lists(self) -> pl.DataFrame:
        """The first places of every system."""
        return self._frame("lists")

    @cached_property
    def candidates(self) -> pl.DataFrame:
        """What the rankers were given."""
        return self._frame("candidates")

    @cached_property
    def truth(self) -> pl.DataFrame:
        """What was to be found."""
        return self._frame("truth")

    def _frame(self, name: str) -> pl.DataFrame:
        path = self.path / f"{name}.parquet"
        if not path.is_file():
            raise InvalidData(
                table=str(path), rule="does not exist", remedy="give a folder that recsys-bench run wrote"
            )
        try:
            return pl.read_parquet(path)
        except pl.exceptions.PolarsError as error:
            raise InvalidData(table=str(path), rule=f"is damaged ({error})", remedy="run recsys-bench again") from error


def read_result(path: str | Path) -> BenchResult:
    """A result from its folder, or from the JSON alone.

    Raises:
        InvalidData: there is none, or it is of another format.
    """
    file = Path(path) / RESULT if Path(path).is_dir() else Path(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidData(
            table=str(path), rule=f"is no result ({error})", remedy="give a folder that recsys-bench run wrote"
        ) from error
    if not isinstance(values, dict):
        raise InvalidData(table=str(path), rule="is no result", remedy="give a folder that recsys-bench run wrote")
    try:
        return BenchResult.from_dict(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidData(
            table=str(path), rule=f"is a damaged result ({error!r})", remedy="run recsys-bench again"
        ) from error


def as_json(value: Mapping[str, Any]) -> str:
    """Indented JSON with a newline at its end; numbers that are not finite become null."""
    return json.dumps(_finite(dict(value)), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _table(values: Mapping[str, Any]) -> Table:
    rows = tuple(Row(**{**row, "metrics": _estimates(row["metrics"])}) for row in values["rows"])
    segments = tuple(Segment(**{**part, "metrics": _estimates(part["metrics"])}) for part in values["segments"])
    return Table(
        **{
            **values,
            "rows": rows,
            "segments": segments,
            "differences": tuple(Difference(**found) for found in values["differences"]),
            "fairness": tuple(Fairness(**found) for found in values["fairness"]),
        }
    )


def _estimates(values: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**estimate) for name, estimate in values.items()}
