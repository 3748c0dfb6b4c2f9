"""How long a rebuild takes with 1 % of the items changed, against encoding everything, on complete-journey.

Run: RECSYS_DATA=FOLDER python benchmarks/speed/rebuild.py [--share 0.01] [--items N]

Titles get the item's id, so that all texts are distinct. Prints JSON: wall time of encoding everything, of the rebuild
and its steps, peak memory, and bytes per item on disk.
"""

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.datasets import load_dataset
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, init, run
from recsys.rebuild.store import Store
from recsys.schema import validate

FAST = {
    "contrastive": {"encoder_steps": 0, "tower_max_steps": 5},
    "n_interest": 0,
    "probabilities": False,
    "renew_towers": False,
    "max_label_users": 200,
}


def main() -> None:
    """Fit, store, change, rebuild, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--items", type=int, help="only the first so many items")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "rebuild-speed")
    arguments = parser.parse_args()
    data = load_dataset("complete-journey")
    tables = validate(data.interactions, data.items, data.users)
    items = tables.items.with_columns(title=pl.col("title") + " " + pl.col("item_id").cast(pl.String))
    items = items if arguments.items is None else items.head(arguments.items)
    interactions = tables.interactions.join(items.select("item_id"), on="item_id", how="semi")
    model = arguments.work / f"model-{items.height}"
    if not model.exists():
        Recommender(config_from_dict(FAST)).fit(interactions, items, tables.users).save(model)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        now = datetime.now(UTC)
        init(store, model, now=now)
        every = round(1 / arguments.share)
        changed = _changed(items, every)
        start = time.perf_counter()
        result = run(store, interactions, changed, tables.users, now=now, config=RebuildConfig(gates=GatesConfig()))
        rebuilt = time.perf_counter() - start
        size = sum(seal.bytes for seal in store.verify().files.values())
        recommender = Recommender.load(model)
        texts = recommender._state.catalogue.texts
        start = time.perf_counter()
        recommender._state.towers.encoder.encode(texts)
        encoded = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        "items": items.height, "texts": len(texts), "encode_all_s": encoded, "rebuild_s": rebuilt,
        "share": rebuilt / encoded, "steps_s": dict(result.seconds), "counts": dict(result.counts),
        "peak_bytes": peak, "bytes_per_item": size / items.height,
    }, indent=2))  # fmt: skip


def _changed(items: pl.DataFrame, every: int) -> pl.DataFrame:
    """Every so-many-th title with a word more."""
    longer = pl.when(pl.int_range(pl.len()) % every == 0).then(pl.col("title") + " anew").otherwise(pl.col("title"))
    return items.with_columns(title=longer)


if __name__ == "__main__":
    main()
