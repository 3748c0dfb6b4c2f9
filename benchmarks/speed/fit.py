"""What a fit by default settings costs, against rows and items: complete-journey, and parts of its catalogue.

Run: python benchmarks/speed/fit.py [--shares 0.25,0.5,1] [--data complete-journey] [--config FILE.toml]

A part is the first items of the catalogue by id, with the interactions that are theirs. Each fit runs in a process of
its own. Prints a markdown table; wall times are for an idle machine, CPU times of all threads are steadier on a busy
one, peak memory is that of the whole process.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

from recsys import Recommender
from recsys.cli import add_config, config_of
from recsys.datasets import load_dataset
from recsys.profiling import metered
from recsys.schema import validate


def main() -> None:
    """One part after another, or, as a child, the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", default="0.25,0.5,1", help="of the items, with commas between them")
    parser.add_argument("--data", default="complete-journey", help="a name or a folder")
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    add_config(parser)
    arguments = parser.parse_args()
    if arguments.share is not None:
        print(json.dumps(cost(arguments)))
        return
    print("| items | texts | interactions | fit, s | CPU s of all threads | peak MB |\n|" + " --- |" * 6, flush=True)
    for share in arguments.shares.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--share", share]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print("| " + " | ".join(f"{value:,.0f}" for value in json.loads(done.stdout).values()) + " |", flush=True)


def cost(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit on a part of the data."""
    data = load_dataset(arguments.data)
    tables = validate(data.interactions, data.items, data.users)
    items = tables.items.head(round(arguments.share * tables.items.height))
    interactions = tables.interactions.join(items.select("item_id"), on="item_id", how="semi")
    recommender, worked = Recommender(config_of(arguments)), time.process_time()
    _, usage = metered(partial(recommender.fit, interactions, items, tables.users))
    return {
        "items": items.height,
        "texts": len(recommender._state.catalogue.texts),
        "interactions": interactions.height,
        "fit_s": usage.seconds,
        "cpu_s": time.process_time() - worked,
        "peak_mb": usage.peak_mb,
    }


if __name__ == "__main__":
    main()
