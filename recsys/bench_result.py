"""What a benchmark found, as plain values and as text.

Owns the schema of the JSON and the layout of the tables; the numbers come from `bench`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recsys.splits import SplitKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system in a table; metrics are means over users.

    Attributes:
        system: its name.
        ndcg: ndcg@k.
        ndcg_low: lower end of its 95% bootstrap interval over users.
        ndcg_high: upper end.
        recall: recall@k.
        candidate_recall: recall@100 of the candidates.
        coverage: share of the catalogue in somebody's first k.
        cold_recall: share of the pairs whose item has no interaction in train that are among the user's 100
            candidates; None where there is no such pair.
        fit_seconds: wall clock; our two rows come from one fit, and both say its time.
        users_per_second: while asked for the lists.
        peak_mb: of the whole process (see `profiling.Usage`), over fit and lists.
    """

    system: str
    ndcg: float
    ndcg_low: float
    ndcg_high: float
    recall: float
    candidate_recall: float
    coverage: float
    cold_recall: float | None
    fit_seconds: float
    users_per_second: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """ndcg@k of one of our rows minus that of another system, user by user, with its 95% bootstrap interval."""

    system: str
    other: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All systems under one protocol.

    Attributes:
        protocol: its name.
        n_users: users tested.
        n_pairs: pairs to be found.
        n_cold_pairs: those of them whose item has no interaction in train.
        rows: one a system.
        differences: of our rows to the baselines, and of both stages to the first alone.
    """

    protocol: str
    n_users: int
    n_pairs: int
    n_cold_pairs: int
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Everything that was measured, and what one needs to measure it again.

    Attributes:
        dataset: name of the data set.
        counts: `interactions`, `items` and `users` of the whole, `train` and `test` interactions of the split.
        split: "time" or "leave-last-out".
        as_of: exclusive end of what was known at fit, ISO 8601, UTC.
        test_hash: see `Split.test_hash`; equal hashes, equal test pairs.
        k: length of the lists.
        seed: of everything random.
        config: `RecommenderConfig` as nested dictionaries.
        versions: of Python and the libraries.
        machine: `platform` and `cores`.
        notes: what was mapped, dropped and decided, as sentences.
        tables: one a protocol.
    """

    dataset: str
    counts: dict[str, int]
    split: SplitKind
    as_of: str
    test_hash: str
    k: int
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str | int]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes of this class and, in `tables`, of `Table`, `Row` and `Difference`, ready for JSON."""
        return asdict(self)


def render(result: BenchResult) -> str:
    """The tables as aligned plain text, each headed by protocol, number of users and test hash; then the notes."""
    counts = result.counts
    head = (
        f"{result.dataset}, {result.split} split: fitted on {counts['train']:,} interactions before {result.as_of}, "
        f"tested on {counts['test']:,}; {counts['items']:,} items; seed {result.seed}"
    )
    notes = "\n".join(f"- {note}" for note in result.notes)
    return "\n\n".join([head, *(_render_table(table, result) for table in result.tables), notes]) + "\n"


def _render_table(table: Table, result: BenchResult) -> str:
    title = (
        f"{table.protocol}: {table.n_users:,} users, {table.n_pairs:,} pairs, {table.n_cold_pairs:,} of them with "
        f"items new to the data; test {result.test_hash}"
    )
    k = result.k
    names = ("system", f"ndcg@{k}", "95% interval", f"recall@{k}", "recall@100", f"coverage@{k}", "cold recall@100")
    rows = _aligned([(*names, "fit s", "users/s", "peak MB"), *map(_cells, table.rows)])
    differences = [
        (f"{found.system} - {found.other}", f"{found.difference:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}")
        for found in table.differences
    ]
    parts = [title, rows]
    if differences:
        parts += ["", _aligned([("difference, user by user", f"ndcg@{k}", "95% interval"), *differences])]
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.system,
        f"{row.ndcg:.4f}",
        f"{row.ndcg_low:.4f} to {row.ndcg_high:.4f}",
        f"{row.recall:.4f}",
        f"{row.candidate_recall:.4f}",
        f"{row.coverage:.4f}",
        "none" if row.cold_recall is None else f"{row.cold_recall:.4f}",
        f"{row.fit_seconds:.1f}",
        f"{row.users_per_second:,.0f}",
        f"{row.peak_mb:,.0f}",
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
