"""What each part is worth: the same split, each part left out in turn, compared user by user with the whole.

    python benchmarks/ablation.py --scenario benchmarks/scenarios/movielens-small.toml --out results/movielens-ablation

The whole stands first; every other row is compared with it alone, and p is corrected for those comparisons. The whole
has the interest score only where it earns its place, and the rows without a source have it only where the whole does.
"text alone" is what the texts do without behaviour: none in the item vectors, none in the sources, and no ranker, since
nothing would be left for it to fuse. Eighteen rows take three fits of stage 1: leaving out a source or the interest
score does not change it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from recsys.bench import SharedFits
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
    "lookalike",
    "new",
    "category",
    "repeat",
    "popular",
    "recent",
    "trending",
)
WHOLE = "whole"
TEXT_SOURCES = ("vector", "similar", "lexical")
NEVER = 2**31 - 1  # interactions that no item has


class Variant:
    """Our recommender with other settings or another catalogue, or stage 1 of it alone.

    With `like`, the interest score is left out where that variant, fitted before, has left it out.
    """

    def __init__(
        self,
        fits: SharedFits,
        config: RecommenderConfig,
        *,
        text: bool = True,
        ranked: bool = True,
        like: "Variant | None" = None,
    ) -> None:
        self.fits, self.config, self.text, self.ranked, self.like = fits, config, text, ranked, like

    def fit(self, interactions: pl.DataFrame, items: pl.DataFrame, *, as_of: object) -> None:
        config = self.config
        if self.like is not None and not self.like.ours.reads_interest:
            config = replace(config, n_interest=0)
        self.ours = self.fits.fit(interactions, items if self.text else without_text(items), config)

    def recommend(self, users: pl.Series, k: int, *, filter_seen: bool) -> pl.DataFrame:
        recommender = self.ours.recommender
        ask = recommender.recommend if self.ranked else recommender.retrieve
        return ask(users, k, filter_seen=filter_seen)


def variants(config: RecommenderConfig) -> dict[str, Variant]:
    """The whole, and what is left without each part; those that share stage 1 stand together."""
    fits = SharedFits()
    plain = replace(config, n_interest=0)
    whole = Variant(fits, config)
    return {
        WHOLE: whole,
        "stage 1 alone": Variant(fits, plain, ranked=False),
        "with interest score in any case": Variant(fits, replace(config, keep_interest="always")),
        "without interest score": Variant(fits, plain),
        **{f"without {name}": Variant(fits, without_sources(config, name), like=whole) for name in SOURCES},
        "without text": Variant(fits, plain, text=False),
        "text alone": Variant(fits, text_alone(plain), ranked=False),
    }


def without_sources(config: RecommenderConfig, *names: str) -> RecommenderConfig:
    """The same with these sources switched off."""
    return replace(config, retriever=replace(config.retriever, **dict.fromkeys(names, 0)))


def text_alone(config: RecommenderConfig) -> RecommenderConfig:
    """No behaviour in the item vectors and none in the sources."""
    behaviour = (name for name in SOURCES if name not in TEXT_SOURCES)
    return replace(without_sources(config, *behaviour), item_tower=replace(config.item_tower, min_interactions=NEVER))


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
    result = run_bench(
        dataset, config, systems=variants(config), reference=WHOLE, out=arguments.out,
        progress=True, **given,
    )  # fmt: skip
    print(render(result), end="")


if __name__ == "__main__":
    main()
