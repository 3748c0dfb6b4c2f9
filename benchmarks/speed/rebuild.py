"""How long a rebuild takes with 1 % of the items changed, against encoding everything, on complete-journey.

Run: python benchmarks/speed/rebuild.py [--share 0.01] [--items N] [--newest 0.0] [--part rebuild|encode]
    [--work FOLDER] [--profile FILE]

Titles get the item's id, so that all texts are distinct. The rebuild and the encoding of everything run in processes of
their own, one after the other. Prints JSON: both wall times, the steps of the rebuild, its peak memory above that of an
interpreter that has imported the job (what the encoder needs is imported while the clock runs), and bytes per item on
disk.
"""

import argparse
import cProfile
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.datasets import load_dataset
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, run
from recsys.rebuild.store import Store
from recsys.schema import Tables, validate

FAST = {
    "contrastive": {"encoder_steps": 0, "tower_max_steps": 5},
    "n_interest": 0,
    "probabilities": False,
    "renew_towers": False,
    "max_label_users": 200,
}


def main() -> None:
    """Fit once, then time both in processes of their own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.01, help="of the items, whose titles get a word more")
    parser.add_argument("--items", type=int, help="only the first so many items")
    parser.add_argument("--newest", type=float, default=0.0, help="share of the interactions done again, a week later")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "rebuild-speed")
    parser.add_argument(
        "--profile", type=Path, help="write a profile of the rebuild's processor time there (for pstats)"
    )
    parser.add_argument("--part", choices=("rebuild", "encode"))
    arguments = parser.parse_args()
    if arguments.part is not None:
        part = _rebuild if arguments.part == "rebuild" else _encode
        print(json.dumps(part(arguments)))
        return
    if not _model(arguments).exists():
        tables = _tables(arguments)
        fitted = Recommender(config_from_dict(FAST)).fit(tables.interactions, tables.items, tables.users)
        fitted.save(_model(arguments))
    found = {name: _alone(name) for name in ("rebuild", "encode")}
    share = found["rebuild"]["rebuild_s"] / found["encode"]["encode_all_s"]
    print(json.dumps({"share": share, **found["encode"], **found["rebuild"]}, indent=2))


def _alone(part: str) -> dict[str, Any]:
    """What a part prints in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rebuild(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the old model and changed tables to a new live version."""
    tables = _tables(arguments)
    interactions = _with_new(tables.interactions, arguments.newest)
    changed = _changed(tables.items, round(1 / arguments.share))
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        place = str(Path(folder) / "store")
        # In another process, as at night: `init` opens the model, which imports what a rebuild needs.
        made = [sys.executable, "-m", "recsys.rebuild", "init", "--store", place, "--model", str(_model(arguments))]
        subprocess.run(made, stdout=subprocess.DEVNULL, check=True)
        store, now = Store.open(Path(place)), datetime.now(UTC)
        before, worked, start = _peak(), _cpu(), time.perf_counter()
        with cProfile.Profile(time.process_time) if arguments.profile else nullcontext() as profile:
            result = run(store, interactions, changed, tables.users, now=now, config=RebuildConfig(gates=GatesConfig()))
        took, worked = time.perf_counter() - start, _cpu() - worked
        size = sum(seal.bytes for seal in store.verify().files.values())
    if profile is not None:
        profile.dump_stats(arguments.profile)
    return {
        "items": changed.height, "rebuild_s": took, "rebuild_cpu_s": worked,
        "steps_s": dict(result.seconds), "counts": dict(result.counts),
        "gates": {gate.name: gate.value for gate in result.gates}, "peak_bytes": _peak(),
        "peak_bytes_per_item": (_peak() - before) / changed.height, "disk_bytes_per_item": size / changed.height,
    }  # fmt: skip


def _encode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every text of the catalogue."""
    state = Recommender.load(_model(arguments))._state
    worked, start = _cpu(), time.perf_counter()
    state.towers.encoder.encode(state.catalogue.texts)
    took, worked = time.perf_counter() - start, _cpu() - worked
    return {"texts": len(state.catalogue.texts), "encode_all_s": took, "encode_all_cpu_s": worked}


def _tables(arguments: argparse.Namespace) -> Tables:
    data = load_dataset("complete-journey")
    tables = validate(data.interactions, data.items, data.users)
    items = tables.items.with_columns(title=pl.col("title") + " " + pl.col("item_id").cast(pl.String))
    items = items if arguments.items is None else items.head(arguments.items)
    return validate(tables.interactions.join(items.select("item_id"), on="item_id", how="semi"), items, tables.users)


def _model(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.work / f"model-{arguments.items or 'all'}"
    return path


def _with_new(interactions: pl.DataFrame, share: float) -> pl.DataFrame:
    """What the fit knew, and after it the newest of it once more."""
    again = interactions.tail(round(share * interactions.height))
    return pl.concat([interactions, again.with_columns(pl.col("timestamp") + pl.duration(weeks=1))])


def _changed(items: pl.DataFrame, every: int) -> pl.DataFrame:
    """Every so-many-th title with a word more."""
    longer = pl.when(pl.int_range(pl.len()) % every == 0).then(pl.col("title") + " anew").otherwise(pl.col("title"))
    return items.with_columns(title=longer)


def _cpu() -> float:
    """Seconds that cores worked for this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
