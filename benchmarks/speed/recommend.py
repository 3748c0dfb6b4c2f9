"""Speed of `recommend` without the interest model: one known user at a time, many at once, and the feature step in it.

    python benchmarks/speed/recommend.py --data FOLDER --users 10000

Fits with hardly any training, since the quality of the lists does not matter here, or loads a saved model with
``--model``. Where there are fewer users than asked for they are asked again. All times are wall times of this process:
run it on an idle machine, or read the ratios only.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import polars as pl

from indexing.contrastive import ContrastiveConfig
from recsys import Recommender, snapshot
from recsys.config import RecommenderConfig
from recsys.datasets import load_dataset

N_WARM, PER_CALL = 20, 1000


class Stopwatch:
    """Wall time spent in some functions of `recsys.snapshot`."""

    def __init__(self, *names: str) -> None:
        self.seconds = 0.0
        for name in names:
            setattr(snapshot, name, self._timed(getattr(snapshot, name)))

    def _timed(self, step: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
        def run(*args: object, **kwargs: object) -> pl.DataFrame:
            start = time.perf_counter()
            result = step(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return run


def fitted(options: argparse.Namespace) -> Recommender:
    """From disk, or from the data after hardly any training."""
    if options.model:
        return Recommender.load(options.model)
    data = load_dataset(options.data)
    config = RecommenderConfig(
        contrastive=ContrastiveConfig(encoder_steps=0, tower_max_steps=5),
        n_interest=0,
        probabilities=False,
        ignore_columns=tuple(options.ignore_columns),
        progress=False,
    )
    start = time.perf_counter()
    recommender = Recommender(config).fit(data.interactions, data.items, data.users)
    print(f"fit: {time.perf_counter() - start:.0f} s")
    return recommender


def one_by_one(recommender: Recommender, users: list[object]) -> np.ndarray:
    """Milliseconds of a call for each user."""
    times = []
    for user in users:
        start = time.perf_counter()
        recommender.recommend([user], 10)
        times.append(time.perf_counter() - start)
    return np.array(times[N_WARM:]) * 1e3


def at_once(recommender: Recommender, users: list[object], n_users: int) -> float:
    """Users a second, in calls for `PER_CALL` users, or all where there are fewer."""
    asked = itertools.islice(itertools.cycle(users), n_users)
    start = time.perf_counter()
    while part := list(itertools.islice(asked, min(PER_CALL, len(users)))):
        recommender.recommend(part, 10)
    return n_users / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="name or folder of a data set")
    parser.add_argument("--users", type=int, default=10_000, help="users of the batch")
    parser.add_argument("--singles", type=int, default=300, help="users asked for one at a time")
    parser.add_argument("--ignore-columns", nargs="*", default=[], help="item columns that are no features")
    parser.add_argument("--model", help="folder of a saved model instead of a fit")
    options = parser.parse_args()
    recommender = fitted(options)
    users = recommender.users.sample(fraction=1.0, shuffle=True, seed=0).to_list()
    watch = Stopwatch("build_features", "add_similarity")
    print("| one user, p50 ms | p99 ms | feature step | batch, users/s | feature step |\n|" + " --- |" * 5)
    start = time.perf_counter()
    single = one_by_one(recommender, list(itertools.islice(itertools.cycle(users), options.singles + N_WARM)))
    single_share, watch.seconds = watch.seconds / (time.perf_counter() - start), 0.0
    start = time.perf_counter()
    rate = at_once(recommender, users, options.users)
    share = watch.seconds / (time.perf_counter() - start)
    p50, p99 = np.percentile(single, [50, 99])
    print(f"| {p50:.1f} | {p99:.1f} | {single_share:.0%} | {rate:.0f} | {share:.0%} |")


if __name__ == "__main__":
    main()
