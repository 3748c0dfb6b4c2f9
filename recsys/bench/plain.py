"""A result as plain text: aligned tables, flags and notes. HTML is `html`'s."""

import unicodedata
from collections.abc import Sequence

from recsys.bench.result import CANDIDATE_RECALL, COLD_RECALL, BenchResult, Estimate, Row, Table


def render(result: BenchResult) -> str:
    """The tables, each headed by protocol, number of users and test hash; then flags and notes."""
    counts = result.counts
    head = (
        f"{result.dataset}, {result.split} split: fitted on {counts['train']:,} interactions before "
        f"{result.cuts[0].as_of}, tested on {counts['test']:,}; {counts['items']:,} items; seed {result.seed}"
    )
    if len(result.cuts) > 1:
        head += f"; {len(result.cuts)} cuts, the last at {result.cuts[-1].as_of}"
    flags = "\n".join(f"! {flag.kind}: {flag.message}" for flag in result.flags)
    notes = "\n".join(f"- {note}" for note in result.notes)
    parts = [head, *(_render_table(table, result) for table in result.tables), flags, notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_table(table: Table, result: BenchResult) -> str:
    title = (
        f"{table.protocol}: {table.n_users:,} users, {table.n_pairs:,} pairs, {table.n_cold_pairs:,} of them with "
        f"items new to the data; test {result.test_hash}"
    )
    k = result.k
    names = ("system", f"ndcg@{k}", "95% interval", f"recall@{k}", "recall@100", f"coverage@{k}", "cold recall@100")
    rows = aligned([(*names, "fit s", "users/s", "peak MB"), *(_cells(row, k) for row in table.rows)])
    found = [
        (
            f"{part.system} - {part.other}",
            f"{part.difference:+.4f}",
            f"{part.low:+.4f} to {part.high:+.4f}",
            f"{part.p_adjusted:.4f}",
            part.verdict,
        )
        for part in table.differences
    ]
    if not found:
        return f"{title}\n{rows}"
    heads = ("difference, user by user", f"ndcg@{k}", "95% interval", "p (Holm)", "verdict")
    return "\n".join([title, rows, "", aligned([heads, *found])])


def _cells(row: Row, k: int) -> tuple[str, ...]:
    ndcg = row.metrics[f"ndcg@{k}"]
    return (
        row.system,
        _number(ndcg.mean),
        f"{_number(ndcg.low)} to {_number(ndcg.high)}",
        _mean(row.metrics[f"recall@{k}"]),
        _mean(row.metrics[CANDIDATE_RECALL]),
        _mean(row.metrics[f"coverage@{k}"]),
        _mean(row.metrics[COLD_RECALL]),
        f"{row.fit_seconds:.1f}",
        f"{row.users_per_second:,.0f}",
        f"{row.peak_mb:,.0f}",
    )


def _mean(estimate: Estimate) -> str:
    return _number(estimate.mean)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [
                line[0] + _gap(line[0], widths[0]),
                *(_gap(cell, w) + cell for cell, w in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    )


def width(text: str) -> int:
    """Columns that a text takes: two for each Chinese, Japanese or Korean character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shortened(text: str, most: int) -> str:
    """The beginning of a text that is wider than `most` columns."""
    if width(text) <= most:
        return text
    kept = text
    while width(kept) > most - 1:
        kept = kept[:-1]
    return f"{kept}…"


def _gap(text: str, columns: int) -> str:
    return " " * (columns - width(text))
