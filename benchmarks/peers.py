"""RecTools' SASRec and its two-stage model on a split of ours, in an environment of their own.

RecTools 0.19 wants numpy below 2 on Python 3.11 (so an older pyarrow too) and brings a fork of implicit in implicit's
place: both clash with what the other extras bring.

    python3.11 -m venv peers
    peers/bin/pip install ".[peers]"
    recsys-bench split --scenario benchmarks/scenarios/movielens-small.toml --out split
    peers/bin/python benchmarks/peers.py split lists.parquet
    recsys-bench run --scenario benchmarks/scenarios/movielens-small.toml --lists lists.parquet --out results

It imports nothing of this package, so RecTools alone will do as well ("rectools[torch,catboost]==0.19.0"); the files of
a split are described in `recsys/bench/outside.py`.

SASRec learns for as many epochs as do best on each user's last item of the train part, and is then fitted anew on all
of it. The two-stage model has three generators (popular, item-kNN, SASRec) and CatBoost's ranker, as in RecTools'
tutorial; its own splitter holds out each user's last item. Users without history get no lists: RecTools has none.
"""

import argparse
import json
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
from catboost import CatBoostRanker
from implicit.nearest_neighbours import TFIDFRecommender
from rectools import Columns
from rectools.dataset import Dataset
from rectools.model_selection import LastNSplitter
from rectools.models import ImplicitItemKNNWrapperModel, PopularModel, SASRecModel
from rectools.models.ranking import CandidateGenerator, CandidateRankingModel, CatBoostReranker

K = 10
STEP = 5  # epochs between two looks at the validation
PATIENCE = 3  # looks
TRAINER = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="folder that recsys-bench split wrote")
    parser.add_argument("out", type=Path, help="lists.parquet")
    parser.add_argument("--models", default="sasrec,two-stage", help="which (sasrec,two-stage)")
    parser.add_argument("--max-epochs", type=int, default=100, help="of SASRec (100)")
    parser.add_argument("--epochs", type=int, help="of SASRec, instead of those that do best on the last items")
    parser.add_argument("--loss", default="softmax", help="of SASRec; gBCE with few negatives is faster (softmax)")
    parser.add_argument("--negatives", type=int, default=256, help="of the losses that draw some (256)")
    parser.add_argument("--length", type=int, default=100, help="of the sequences that SASRec reads (100)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    settings = {"loss": arguments.loss, "n_negatives": arguments.negatives, "session_max_len": arguments.length}
    warnings.filterwarnings("ignore")
    about = json.loads((arguments.split / "split.json").read_text(encoding="utf-8"))
    asked = pd.read_parquet(arguments.split / "asked.parquet")
    items = pd.read_parquet(arguments.split / "items.parquet", columns=["item_id", "available"])
    found = []
    for cut in sorted(asked["cut"].unique()):
        train = canonical(pd.read_parquet(arguments.split / f"train-{cut}.parquet"))
        shown = np.intersect1d(items.loc[items["available"], "item_id"], train[Columns.Item].unique())
        people = asked[(asked["cut"] == cut) & asked["user_id"].isin(train[Columns.User].unique())]
        epochs = arguments.epochs or best_epochs(train, arguments.seed, arguments.max_epochs, settings)
        print(f"cut {cut}: {epochs} epochs", flush=True)
        makers: dict[str, Callable[[], Any]] = {
            "sasrec": lambda epochs=epochs: sasrec(arguments.seed, epochs, settings),
            "two-stage": lambda epochs=epochs: two_stage(arguments.seed, epochs, settings),
        }
        for name in arguments.models.split(","):
            found += answers(f"rectools: {name}", makers[name], train, people, shown, about["depth"])
            print(f"cut {cut}: {name} done", flush=True)
            pd.concat(found).assign(test_hash=about["test_hash"]).to_parquet(arguments.out, index=False)


def canonical(train: pd.DataFrame) -> pd.DataFrame:
    """The columns that RecTools knows; times without a zone."""
    return pd.DataFrame(
        {
            Columns.User: train["user_id"],
            Columns.Item: train["item_id"],
            Columns.Weight: train["weight"],
            Columns.Datetime: train["timestamp"].dt.tz_localize(None),
        }
    )


def answers(
    system: str, make: Callable[[], Any], train: pd.DataFrame, asked: pd.DataFrame, shown: Any, depth: int
) -> list[pd.DataFrame]:
    """Fit one model and ask it under every protocol."""
    dataset, start = Dataset.construct(train), time.perf_counter()
    model = make().fit(dataset)
    fit_seconds = time.perf_counter() - start
    found = []
    for (cut, protocol, hide), people in asked.groupby(["cut", "protocol", "filter_seen"]):
        start = time.perf_counter()
        lists = model.recommend(
            people["user_id"].to_numpy(), dataset, k=depth, filter_viewed=bool(hide), items_to_recommend=shown,
            on_unsupported_targets="ignore",
        )  # fmt: skip
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        lists = lists[["user_id", "item_id", "rank", "score"]].astype({"rank": "int32", "score": "float64"})
        found.append(
            lists.assign(
                system=system, cut=np.int32(cut), protocol=protocol, fit_seconds=fit_seconds, ask_seconds=took,
                peak_mb=peak,
            )
        )  # fmt: skip
    return found


class SASRec(SASRecModel):
    """Leaves out people of whom it knows a single interaction, whom RecTools' two-stage model would stumble over."""

    def recommend(self, *arguments: Any, **named: Any) -> pd.DataFrame:
        return super().recommend(*arguments, **{**named, "on_unsupported_targets": "ignore"})


def sasrec(seed: int, epochs: int, settings: dict[str, Any]) -> SASRec:
    """RecTools' defaults but for the size, which suits small data, the epochs and the loss."""
    lightning.seed_everything(seed, verbose=False)

    def trainer(**_: Any) -> lightning.Trainer:
        return lightning.Trainer(max_epochs=epochs, min_epochs=epochs, **TRAINER)

    return SASRec(n_factors=128, get_trainer_func=trainer, **settings)


def two_stage(seed: int, epochs: int, settings: dict[str, Any]) -> CandidateRankingModel:
    """Three generators and CatBoost's ranker over their ranks and scores."""
    generators = [
        CandidateGenerator(PopularModel(), 50, keep_ranks=True, keep_scores=True),
        CandidateGenerator(ImplicitItemKNNWrapperModel(TFIDFRecommender(K=50)), 100, keep_ranks=True, keep_scores=True),
        CandidateGenerator(sasrec(seed, epochs, settings), 100, keep_ranks=True, keep_scores=True),
    ]
    reranker = CatBoostReranker(CatBoostRanker(verbose=False, random_seed=seed, allow_writing_files=False))
    return CandidateRankingModel(generators, LastNSplitter(n=1, n_splits=1), reranker)


def best_epochs(train: pd.DataFrame, seed: int, most: int, settings: dict[str, Any]) -> int:
    """After how many epochs SASRec does best on each user's last item."""
    last = train.sort_values([Columns.Datetime, Columns.Item]).groupby(Columns.User).tail(1)
    rest = train.drop(last.index)
    last = last[last[Columns.User].isin(rest[Columns.User]) & last[Columns.Item].isin(rest[Columns.Item])]
    dataset, model, best, waited, done = Dataset.construct(rest), sasrec(seed, STEP, settings), (-1.0, STEP), 0, 0
    while done < most and waited < PATIENCE:
        model.fit_partial(dataset, min_epochs=STEP, max_epochs=STEP)
        done += STEP
        lists = model.recommend(last[Columns.User].unique(), dataset, k=K, filter_viewed=True)
        hits = lists.merge(last[[Columns.User, Columns.Item]], on=[Columns.User, Columns.Item])
        ndcg = float((1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(last))
        print(f"{done} epochs: ndcg@{K} {ndcg:.4f} on the last items of train", flush=True)
        waited = waited + 1 if ndcg <= best[0] else 0
        best = max(best, (ndcg, done), key=lambda found: found[0])
    return best[1]


if __name__ == "__main__":
    main()
