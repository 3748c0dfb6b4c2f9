"""Speed of `recommend`: one known user at a time without and with the interest model, many at once, the feature step.

    python benchmarks/speed/recommend.py --data FOLDER --users 10000
    python benchmarks/speed/recommend.py --model FOLDER --interest-model FOLDER --peer lists.parquet

Fits with hardly any training, since the quality of the lists does not matter here, or loads saved models. Where there
are fewer users than asked for, the batch asks them again; one at a time each is asked once, since interest scores are
remembered. Wall times are for an idle machine; CPU times, of all threads, are steadier on a busy one. With ``--peer``,
what `benchmarks/peers.py` wrote for the same data, the batch is compared with RecTools' two-stage model.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl

from indexing.contrastive import ContrastiveConfig
from ranking.interest import InterestConfig
from recsys import Recommender, candidates
from recsys.config import RecommenderConfig
from recsys.datasets import load_dataset

N_WARM, PER_CALL, N_INTEREST = 20, 1000, 30
PEER = "rectools: two-stage"
Times = np.ndarray  # (n, 2): wall and CPU seconds


class Stopwatch:
    """CPU time spent in some functions of `recsys.candidates`, whose work is done in the thread that calls them."""

    def __init__(self, *names: str) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(candidates, name, self._timed(getattr(candidates, name)))

    def _timed(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: object, **kwargs: object) -> Any:
            start = time.thread_time()
            result = step(*args, **kwargs)
            self.seconds += time.thread_time() - start
            return result

        return run


def fitted(options: argparse.Namespace, *, n_interest: int) -> Recommender:
    """From disk, or from the data after hardly any training."""
    folder = options.interest_model if n_interest else options.model
    if folder:
        return Recommender.load(folder)
    data = load_dataset(options.data)
    config = RecommenderConfig(
        contrastive=ContrastiveConfig(encoder_steps=0, tower_max_steps=5),
        interest=InterestConfig(max_groups=40, group_size=8),
        n_interest=n_interest,
        keep_interest="always",
        probabilities=False,
        ignore_columns=tuple(options.ignore_columns),
        progress=False,
    )
    return Recommender(config).fit(data.interactions, data.items, data.users)


def calls(recommender: Recommender, parts: Iterable[list[object]]) -> Times:
    """Wall and CPU seconds of a call for each part of the users."""
    times = []
    for part in parts:
        wall, cpu = time.perf_counter(), time.process_time()
        recommender.recommend(part, 10)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return np.array(times)


def in_parts(users: list[object], n_users: int) -> Iterator[list[object]]:
    """The users again and again, in calls for `PER_CALL`, or all where there are fewer."""
    asked = itertools.islice(itertools.cycle(users), n_users)
    while part := list(itertools.islice(asked, min(PER_CALL, len(users)))):
        yield part


def measure(recommender: Recommender, n_single: int, n_batch: int, watch: Stopwatch) -> tuple[list[str], float]:
    """Cells of a row of the table, and users a second in a batch, 0.0 where none was asked for."""
    users = recommender.users.sample(fraction=1.0, shuffle=True, seed=0).to_list()
    calls(recommender, ([user] for user in users[:N_WARM]))
    watch.seconds = 0.0
    single = calls(recommender, ([user] for user in users[N_WARM : N_WARM + n_single]))
    cells = [f"{value * 1e3:.1f}" for value in np.percentile(single, [50, 99], axis=0).T.ravel()]
    cells.append(f"{watch.seconds / single[:, 1].sum():.0%}")
    if not n_batch:
        return [*cells, "", "", ""], 0.0
    watch.seconds = 0.0
    wall, cpu = calls(recommender, in_parts(users, n_batch)).sum(axis=0)
    return [*cells, f"{n_batch / wall:.0f}", f"{n_batch / cpu:.0f}", f"{watch.seconds / cpu:.0%}"], n_batch / wall


def peer_rate(lists: str) -> float:
    """Users a second of RecTools' two-stage model."""
    asked = pl.read_parquet(lists).filter(system=PEER).group_by("cut", "protocol")
    counts = asked.agg(pl.col("user_id").n_unique(), pl.col("ask_seconds").first())
    return float(counts["user_id"].sum() / counts["ask_seconds"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="name or folder of a data set")
    parser.add_argument("--users", type=int, default=10_000, help="users of the batch")
    parser.add_argument("--singles", type=int, default=300, help="users asked for one at a time")
    parser.add_argument("--ignore-columns", nargs="*", default=[], help="item columns that are no features")
    parser.add_argument("--model", help="folder of a saved model without interest model, instead of a fit")
    parser.add_argument("--interest-model", help="folder of a saved model with one, instead of a fit")
    parser.add_argument("--peer", help="lists that benchmarks/peers.py wrote")
    options = parser.parse_args()
    watch = Stopwatch("build_features", "add_similarity")
    print(
        "| interest model | one user, p50 ms | p99 ms | p50 CPU ms | p99 CPU ms | feature step "
        "| batch, users/s | users per CPU second | feature step |\n|" + " --- |" * 9
    )
    cells, rate = measure(fitted(options, n_interest=0), options.singles, options.users, watch)
    print("| none |", " | ".join(cells), "|", flush=True)
    cells, _ = measure(fitted(options, n_interest=N_INTEREST), options.singles, 0, watch)
    print(f"| {N_INTEREST} candidates |", " | ".join(cells), "|")
    if options.peer:
        theirs = peer_rate(options.peer)
        print(f"\nRecTools' two-stage model: {theirs:.0f} users/s, {rate / theirs:.1f} times slower.")


if __name__ == "__main__":
    main()
