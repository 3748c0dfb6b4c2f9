"""Ways of training the text encoder, by what they are worth for items that nobody took.

    python benchmarks/text_encoder.py --data FOLDER [--ways fine-tuned,simcse] [--out FILE]

A validation cut: each user's last interaction is put away, the one before it is looked for. A random tenth of the items
lose every interaction, and those who took one of them must be given it. Each way trains the text encoder from its
published weights on what is taken together, and nothing else; then the hidden items are ranked by the cosines of their
texts' vectors to those of the history. Prints a table, each way compared with "fine-tuned" user by user.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from retrieval import COLD_SEED, COLD_SHARE, DEPTH, lists_by_cosines, without_a_tenth

from indexing.contrastive import ContrastiveConfig
from indexing.warm_up import WarmUpConfig
from recsys import metrics, splits
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.datasets import load_dataset
from recsys.device import resolve_device
from recsys.events import to_events
from recsys.notes import Notes
from recsys.schema import validate
from recsys.towers import covisitation_of, load_encoder, prepare_encoder, tune_encoder

REFERENCE = "fine-tuned"
USUAL, TAUGHT = RecommenderConfig(), ContrastiveConfig()
WAYS = {
    REFERENCE: USUAL,
    "frozen": replace(USUAL, contrastive=replace(TAUGHT, encoder_steps=0)),
    "word dropout 0.2": replace(USUAL, contrastive=replace(TAUGHT, word_dropout=0.2)),
    "adversarial 1": replace(USUAL, contrastive=replace(TAUGHT, adversarial=1.0)),
    "simcse": replace(USUAL, warm_up=WarmUpConfig(objective="simcse")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas between them")
    parser.add_argument("--min-items", type=int, default=5)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if unknown := sorted(set(ways) - set(WAYS)):
        parser.error(f"--ways: {', '.join(unknown)} unknown; known are {', '.join(WAYS)}")
    dataset = load_dataset(arguments.data)
    tables = validate(dataset.interactions, dataset.items)
    last = splits.split(tables.interactions, "leave-last-out", min_items=arguments.min_items, repeats=False)
    cut = splits.split(last.train, "leave-last-out", min_items=2, repeats=False)
    train, truth, cold = without_a_tenth(cut.train, cut.test, tables.items, COLD_SEED)
    users = truth["user_id"].unique().sort()
    print(f"{len(users)} users; {COLD_SHARE:.0%} of the items are hidden and ranked among themselves")
    print(
        "| text encoder | recall@10 | ndcg@10 | recall@100 | ndcg@10 minus fine-tuned | s |\n|" + " --- |" * 6,
        flush=True,
    )
    ndcg, rows = {}, {}
    for way in dict.fromkeys([REFERENCE, *ways]):
        start = time.perf_counter()
        vectors = text_vectors(train, tables.items, WAYS[way])
        seconds = time.perf_counter() - start
        hits = metrics.hit_matrix(lists_by_cosines(vectors, train, users, tables.items, cold), truth, DEPTH)
        ndcg[way] = metrics.ndcg(hits, 10)
        means = [float(values.mean()) for values in (metrics.recall(hits, 10), ndcg[way], metrics.recall(hits, 100))]
        gain = metrics.paired_bootstrap(ndcg[way], ndcg[REFERENCE], seed=USUAL.seed)
        shown = "" if way == REFERENCE else "{:+.4f} ({:+.4f} to {:+.4f})".format(*gain)
        print(f"| {way} | " + " | ".join(f"{mean:.4f}" for mean in means) + f" | {shown} | {seconds:.0f} |", flush=True)
        rows[way] = {"means": means, "difference": gain, "seconds": seconds}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=2) + "\n")


def text_vectors(train: pl.DataFrame, items: pl.DataFrame, config: RecommenderConfig) -> npt.NDArray[np.float32]:
    """Unit vectors of the items' texts by an encoder that was trained as configured, (n_items, dim)."""
    device, catalogue, notes = resolve_device(config.device), Catalogue.of(items), Notes(())
    encoder = load_encoder(config, device)
    if not prepare_encoder(encoder, catalogue, config, notes):
        raise SystemExit(notes.sentences[-1])
    events = to_events(train, catalogue, tuple(train["event"].unique().sort()))
    tune_encoder(encoder, covisitation_of(events, catalogue, config), catalogue, config, device)
    return encoder.encode(catalogue.texts, progress=config.progress)[catalogue.text_rows]


if __name__ == "__main__":
    main()
