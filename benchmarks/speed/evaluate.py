"""How long metrics and bootstrap take: 100,000 users with 100 items each, 1,000 resamples.

    python benchmarks/speed/evaluate.py [--users 100000] [--items 100] [--samples 1000] [--out FILE.json]

Lists and truth are drawn at random from a catalogue of 50,000 items. Everything that a table's row says about accuracy
(six metrics at 10, 20 and 100), novelty, popularity lift and serendipity, and the intervals of all of them. Reads no
data; prints seconds and the process's peak memory in MB.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

from recsys import metrics
from recsys.bench import beyond
from recsys.bench.measure import ACCURACY, estimates
from recsys.profiling import machine, metered

KS = (10, 20, 100)
N_CATALOGUE = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    lists, truth, train = tables(arguments.users, arguments.items)
    users = truth["user_id"].unique().sort()

    (names, values), measuring = metered(lambda: measured(lists, truth, train, users, arguments.items))
    means, drawing = metered(lambda: metrics.bootstrap_means(values, n_samples=arguments.samples, seed=0))
    found = estimates(values, names, means)
    result = {
        "users": arguments.users,
        "items": arguments.items,
        "samples": arguments.samples,
        "columns": len(names),
        "metrics_seconds": round(measuring.seconds, 2),
        "bootstrap_seconds": round(drawing.seconds, 2),
        "seconds": round(measuring.seconds + drawing.seconds, 2),
        "peak_mb": round(max(measuring.peak_mb, drawing.peak_mb)),
        "machine": machine(),
        "ndcg": [found["ndcg@10"].mean, found["ndcg@10"].low, found["ndcg@10"].high],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def tables(n_users: int, n_items: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Lists of distinct items, five pairs to be found and ten rows of history for each user; ids are strings."""
    rng = np.random.default_rng(0)
    ids = pl.Series("item_id", [f"i{item:06}" for item in range(N_CATALOGUE)])
    names = pl.Series("user_id", [f"u{user:06}" for user in range(n_users)])
    starts, steps = rng.integers(N_CATALOGUE, size=n_users), 1 + 2 * rng.integers(1000, size=n_users)
    rows = (starts[:, None] + steps[:, None] * np.arange(n_items)) % N_CATALOGUE
    owner = np.repeat(np.arange(n_users), n_items)
    rank = pl.Series("rank", np.tile(np.arange(1, n_items + 1), n_users), dtype=pl.Int32)
    lists = pl.DataFrame([names.gather(owner), ids.gather(rows.ravel()), rank])
    truth = _drawn(rng, names, ids, 5)
    return lists, truth.unique(maintain_order=True), _drawn(rng, names, ids, 10)


def measured(
    lists: pl.DataFrame, truth: pl.DataFrame, train: pl.DataFrame, users: pl.Series, depth: int
) -> tuple[list[str], metrics.FloatArray]:
    """Names of the columns, and float64 (n_users, n_columns)."""
    lists = metrics.first_k(lists, depth)
    hits = metrics.hit_matrix(lists, truth, depth)
    found = {f"{name}@{k}": metric(hits, k) for name, metric in ACCURACY.items() for k in KS if k <= depth}
    found["novelty@10"] = beyond.novelty(lists, train, users, 10)
    found["popularity_lift@10"] = beyond.popularity_lift(lists, train, users, 10)
    found["serendipity@10"] = beyond.serendipity(lists, truth, train, users, 10)
    return list(found), np.stack(list(found.values()), axis=1)


def _drawn(rng: np.random.Generator, names: pl.Series, ids: pl.Series, n: int) -> pl.DataFrame:
    owner = np.repeat(np.arange(len(names)), n)
    return pl.DataFrame([names.gather(owner), ids.gather(rng.integers(N_CATALOGUE, size=len(owner)))])


if __name__ == "__main__":
    main()
