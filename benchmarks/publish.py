"""Write results as baselines for `recsys-bench gate` and print their tables as Markdown, as README.md has them.

    python benchmarks/publish.py results/movielens-small results/lctt-zh

A baseline is benchmarks/baselines/NAME.json, NAME being the folder's: the result without its segments, at its main
depth only, under the data set's name instead of its path.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from recsys.bench.result import CANDIDATE_RECALL, CEILING, COLD_RECALL, BenchResult, Row, Table, as_json, read_result

BASELINES = Path(__file__).with_name("baselines")
HEADS = ("system", "ndcg@10", "recall@10", "recall@100", "coverage@10", "fit s", "users/s", "peak MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders that recsys-bench run wrote")
    for folder in parser.parse_args().results:
        baseline = slim(read_result(folder))
        (BASELINES / f"{folder.name}.json").write_text(as_json(baseline.to_dict()), encoding="utf-8")
        print(f"## {folder.name}\n\nTest pairs {baseline.test_hash}.\n")
        for table in baseline.tables:
            print(f"{table.protocol}, {table.n_users:,} users:\n")
            print("\n".join(markdown(table)) + "\n")


def slim(result: BenchResult) -> BenchResult:
    """What a gate and a table need."""
    tables = tuple(
        replace(table, segments=(), fairness=(), rows=tuple(main_depth(row, result.k) for row in table.rows))
        for table in result.tables
    )
    return replace(result, dataset=Path(result.dataset).name, tables=tables)


def main_depth(row: Row, k: int) -> Row:
    """The row with its metrics at one depth."""
    of_candidates = (CANDIDATE_RECALL, COLD_RECALL, CEILING)
    kept = {name: row.metrics[name] for name in row.metrics if name.endswith(f"@{k}") or name in of_candidates}
    return replace(row, metrics=kept)


def markdown(table: Table) -> list[str]:
    """One line a system."""
    lines = [HEADS, ("---",) * len(HEADS)]
    for row in table.rows:
        ndcg, recall, coverage = (row.metrics[name] for name in ("ndcg@10", "recall@10", "coverage@10"))
        mean = f"{number(ndcg.mean)} ({number(ndcg.low)} to {number(ndcg.high)})"
        found = (number(value) for value in (recall.mean, row.metrics[CANDIDATE_RECALL].mean, coverage.mean))
        lines.append(
            (row.system, mean, *found, f"{row.fit_seconds:,.0f}", f"{row.users_per_second:,.0f}", f"{row.peak_mb:,.0f}")
        )
    return [f"| {' | '.join(line)} |" for line in lines]


def number(value: float | None) -> str:
    """Four digits."""
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
