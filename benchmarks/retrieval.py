"""Stage 1 on its own, on data cut at each user's last interaction: whole catalogue ranked, seen items left out.

    python benchmarks/retrieval.py --data FOLDER                        the bi-encoder, each source, and their union
    python benchmarks/retrieval.py --data FOLDER --cold                 items whose interactions were all hidden
    python benchmarks/retrieval.py --data FOLDER --against-frozen       is fine-tuning the text encoder worth it?
    python benchmarks/retrieval.py --data FOLDER --cold --against-frozen     the same of hidden items

With `--tenths N` N random tenths of the items are hidden in turn, a fit each. With `--config FILE` the settings come
from TOML. With `--validation` each user's last interaction is put away first and the one before it is looked for, which
is where choices are made. Prints tables, and writes them as JSON with `--out`.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer

from indexing.lexical import tokenize
from recsys import Recommender, metrics, splits
from recsys.config import RecommenderConfig, read_config
from recsys.datasets import load_dataset
from recsys.schema import validate
from recsys.text import item_texts

COLD_SHARE = 0.1
COLD_SEED = 2014
DEPTH = 300
COLD_COLUMNS = ("recall@10", "ndcg@10", "recall@100")
TEXT_SOURCES = ("lexical", "similar", "lookalike")
DECAY = 0.8  # of the weights in lists by cosines, from the newest item of a history on


def main() -> None:
    arguments = parse()
    config = read_config(arguments.config) if arguments.config else RecommenderConfig()
    config = replace(config, n_interest=0)
    dataset = load_dataset(arguments.data)
    kept = [name for name in dataset.items.columns if name not in arguments.ignore_columns.split(",")]
    tables = validate(dataset.interactions, dataset.items.select(kept))
    cut = splits.split(tables.interactions, "leave-last-out", min_items=arguments.min_items, repeats=False)
    if arguments.validation:
        cut = splits.split(cut.train, "leave-last-out", min_items=2, repeats=False)
    given = (cut.train, cut.test, tables.items, config)
    if arguments.cold:
        result = cold_items(*given, tenths=arguments.tenths, against_frozen=arguments.against_frozen)
    else:
        result = frozen(*given) if arguments.against_frozen else warm_items(*given)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--config")
    parser.add_argument("--ignore-columns", default="")
    parser.add_argument("--min-items", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--tenths", type=int, default=1)
    parser.add_argument("--against-frozen", action="store_true")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if arguments.tenths < 1 or (arguments.tenths > 1 and not arguments.cold):
        parser.error("--tenths must be at least 1, and is of --cold alone")
    return arguments


def warm_items(train: pl.DataFrame, test: pl.DataFrame, items: pl.DataFrame, config: RecommenderConfig) -> dict:
    recommender, seconds = fitted(train, items, config)
    return sources_of(recommender, test, seconds)


def sources_of(recommender: Recommender, test: pl.DataFrame, seconds: float) -> dict:
    """Each source alone, and what is left of their union after the cut to 300."""
    users, truth = test["user_id"].unique().sort(), test.select("user_id", "item_id").unique()
    rows = {}
    for name in [*recommender.sources, None]:
        found = recommender.retrieve(users, DEPTH, filter_seen=True, sources=name and [name])
        rows[name or "union"] = measure(found, truth)
    print(f"\nfit {seconds:.0f} s; {len(users)} users; seen items left out")
    show(rows, ("recall@10", "ndcg@10", "recall@100", "recall@300", "items a user"))
    print("\n".join(recommender.notes), flush=True)
    return {"rows": rows, "fit_seconds": seconds, "users": len(users), "notes": list(recommender.notes)}


def cold_items(
    train: pl.DataFrame,
    test: pl.DataFrame,
    items: pl.DataFrame,
    config: RecommenderConfig,
    *,
    tenths: int,
    against_frozen: bool,
) -> dict:
    """Random tenths of the items lose every interaction in turn; see `cold_tenth`."""
    seeds = range(COLD_SEED, COLD_SEED + tenths)
    results = [cold_tenth(train, test, items, config, seed, against_frozen=against_frozen) for seed in seeds]
    rows = {
        name: {key: float(np.mean([result["rows"][name][key] for result in results])) for key in row}
        for name, row in results[0]["rows"].items()
    }
    if tenths > 1:
        print(f"\nmeans of {tenths} tenths")
        show(rows, COLD_COLUMNS)
    return {"rows": rows, "tenths": results}


def cold_tenth(
    train: pl.DataFrame,
    test: pl.DataFrame,
    items: pl.DataFrame,
    config: RecommenderConfig,
    seed: int,
    *,
    against_frozen: bool,
) -> dict:
    """A random tenth of the items lose every interaction; who took one of them last must be given it by its text."""
    train, truth, cold = without_a_tenth(train, test, items, seed)
    users = truth["user_id"].unique().sort()
    only = {"filter_seen": True, "allow_items": cold}
    words = TfidfVectorizer(analyzer=tokenize, sublinear_tf=True).fit_transform(item_texts(items))
    near = {"TF-IDF neighbours": lists_by_cosines(words, train, users, items, cold)}
    fits = ({", encoder frozen": without_tuning(config)} if against_frozen else {}) | {"": config}
    for name, chosen in fits.items():
        recommender, seconds = fitted(train, items, chosen)
        print(f"fit{name}: {seconds:.0f} s", flush=True)
        near[f"bi-encoder{name}"] = recommender.retrieve(users, DEPTH, sources=["vector"], **only)
        near[f"union of sources{name}"] = recommender.retrieve(users, DEPTH, **only)
        near[f"the ranker's lists{name}"] = recommender.recommend(users, DEPTH, **only)
    for source in TEXT_SOURCES:
        near[source] = recommender.retrieve(users, DEPTH, sources=[source], **only)
    rows = {name: measure(found, truth) for name, found in near.items()}
    print(f"\n{len(users)} users, {len(cold)} cold items, ranked among themselves")
    show(rows, COLD_COLUMNS)
    result = {"rows": rows, "users": len(users), "cold": len(cold), "seed": seed}
    if against_frozen:
        hits = [metrics.hit_matrix(near[f"bi-encoder{name}"], truth, 10) for name in ("", ", encoder frozen")]
        difference = metrics.paired_bootstrap(*(metrics.ndcg(found, 10) for found in hits), seed=config.seed)
        print("ndcg@10, fine-tuned minus frozen, with interval:", difference)
        result["tuned_minus_frozen"] = difference
    return result


def without_a_tenth(
    train: pl.DataFrame, test: pl.DataFrame, items: pl.DataFrame, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.Series]:
    """Interactions without a random tenth of the items, who took one of these last, and the ids of the tenth."""
    ids = items["item_id"].sort()
    cold = ids.sample(int(COLD_SHARE * len(ids)), seed=seed)
    train = train.filter(~pl.col("item_id").is_in(cold.implode()))
    truth = test.filter(pl.col("item_id").is_in(cold.implode())).join(train, on="user_id", how="semi")
    return train, truth.select("user_id", "item_id").unique(), cold


def without_tuning(config: RecommenderConfig) -> RecommenderConfig:
    return replace(config, contrastive=replace(config.contrastive, encoder_steps=0))


def frozen(train: pl.DataFrame, test: pl.DataFrame, items: pl.DataFrame, config: RecommenderConfig) -> dict:
    """The same fit with and without fine-tuning, compared user by user, with ids and from texts alone."""
    users, truth = test["user_id"].unique().sort(), test.select("user_id", "item_id").unique()
    by_system, result = {}, {}
    for name, chosen in (("fine-tuned", config), ("frozen", without_tuning(config))):
        recommender, seconds = fitted(train, items, chosen)
        print(f"\n{name}")
        result[name] = sources_of(recommender, test, seconds)
        found = recommender.retrieve(users, DEPTH, filter_seen=True, sources=["vector"])
        by_system[name] = metrics.hit_matrix(found.filter(pl.col("rank") <= 100), truth, 100)
    for metric, k in ((metrics.ndcg, 10), (metrics.recall, 10), (metrics.recall, 100)):
        tuned, fixed = (metric(by_system[name], k) for name in ("fine-tuned", "frozen"))
        difference = metrics.paired_bootstrap(tuned, fixed, seed=config.seed)
        label = f"{metric.__name__}@{k}"
        result[label] = {"fine-tuned": float(tuned.mean()), "frozen": float(fixed.mean()), "difference": difference}
        print(label, f"fine-tuned {tuned.mean():.4f}, frozen {fixed.mean():.4f}, paired difference", difference)
    return result


def fitted(train: pl.DataFrame, items: pl.DataFrame, config: RecommenderConfig) -> tuple[Recommender, float]:
    start = time.perf_counter()
    recommender = Recommender(config).fit(train, items)
    return recommender, time.perf_counter() - start


def lists_by_cosines(
    vectors: Any, train: pl.DataFrame, users: pl.Series, items: pl.DataFrame, cold: pl.Series
) -> pl.DataFrame:
    """Cold items by cosine of their unit vectors to each item of the history, the newest weighing most."""
    rows = {item: row for row, item in enumerate(items["item_id"])}
    choices = vectors[[rows[item] for item in cold]]
    lists = []
    histories = train.sort("timestamp", maintain_order=True).group_by("user_id").agg("item_id")
    by_user = dict(histories.iter_rows())
    for user in users:
        history = [rows[item] for item in by_user[user]]
        weights = DECAY ** np.arange(len(history))[::-1]
        scores = (choices @ (vectors[history].T @ weights)).ravel()
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        ranked = {"user_id": [user] * len(best), "item_id": cold.gather(best), "rank": np.arange(1, len(best) + 1)}
        lists.append(pl.DataFrame(ranked))
    return pl.concat(lists)


def measure(found: pl.DataFrame, truth: pl.DataFrame) -> dict[str, float]:
    hits = metrics.hit_matrix(found, truth, DEPTH)
    named = {"recall@10": metrics.recall(hits, 10), "ndcg@10": metrics.ndcg(hits, 10)}
    named |= {f"recall@{k}": metrics.recall(hits, k) for k in (100, DEPTH)}
    means = {name: float(values.mean()) for name, values in named.items()}
    return {**means, "items a user": found.height / max(1, truth["user_id"].n_unique())}


def show(rows: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    print("| system | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
