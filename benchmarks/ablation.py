"""What each part is worth: the same split, each part left out in turn, compared user by user with the whole.

    python benchmarks/ablation.py --scenario benchmarks/scenarios/movielens-small.toml --out results/movielens-ablation

Every variant is fitted anew, so this takes 17 fits. The whole has the interest score only where it earns its place.
"text alone" is what the texts do without behaviour: none in the item vectors, none in the sources, and no ranker,
since nothing would be left for it to fuse. The whole stands first; the last columns of the printed table are the paired
differences to it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys import Recommender
from recsys.bench.plain import render
from recsys.bench.run import run_bench
from recsys.bench.scenario import read_scenario
from recsys.bench.systems import without_text
from recsys.config import RecommenderConfig, config_from_dict
from recsys.datasets import load_dataset

SOURCES = (
    "vector",
    "similar",
    "covisitation",
    "ease",
    "lexical",
    "category",
    "repeat",
    "popular",
    "recent",
    "trending",
)
TEXT_SOURCES = ("vector", "similar", "lexical")
NEVER = 2**31 - 1  # interactions that no item has


class Variant:
    """Our recommender with other settings or another catalogue, or stage 1 of it alone."""

    def __init__(self, config: RecommenderConfig, *, text: bool = True, ranked: bool = True) -> None:
        self.config, self.text, self.ranked = config, text, ranked

    def fit(self, interactions: pl.DataFrame, items: pl.DataFrame, *, as_of: object) -> None:
        self.recommender = Recommender(self.config).fit(interactions, items if self.text else without_text(items))

    def recommend(self, users: pl.Series, k: int, *, filter_seen: bool) -> pl.DataFrame:
        ask = self.recommender.recommend if self.ranked else self.recommender.retrieve
        return ask(users, k, filter_seen=filter_seen)


def variants(config: RecommenderConfig) -> dict[str, Variant]:
    """The whole, and what is left without each part."""
    plain = replace(config, n_interest=0)
    behaviour = {name: 0 for name in SOURCES if name not in TEXT_SOURCES}
    texts = replace(
        plain,
        retriever=replace(config.retriever, **behaviour),
        item_tower=replace(config.item_tower, min_interactions=NEVER),
        probabilities=False,
    )
    return {
        "whole": Variant(config),
        "stage 1 alone": Variant(plain, ranked=False),
        "with interest score in any case": Variant(replace(config, keep_interest="always")),
        "without interest score": Variant(plain),
        "without text": Variant(plain, text=False),
        "text alone": Variant(texts, ranked=False),
    } | {
        f"without {name}": Variant(replace(config, retriever=replace(config.retriever, **{name: 0})))
        for name in SOURCES
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scenario = read_scenario(arguments.scenario)
    given: dict[str, Any] = dict(scenario.values)
    dataset, ignored = load_dataset(given.pop("data")), given.pop("ignore_columns", ())
    given.pop("systems", None)
    config = replace(config_from_dict(scenario.config), ignore_columns=tuple(ignored), probabilities=False)
    result = run_bench(dataset, config, systems=variants(config), out=arguments.out, **given)
    print(render(result), end="")


if __name__ == "__main__":
    main()
