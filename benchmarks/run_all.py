"""Run the benches behind README.md's tables; results go to results/, progress to stderr.

Needs RECSYS_DATA: a folder with the data sets as sub-folders, each with interactions and items. A data set that is not
there is reported and left out. Takes about two hours on two cores.
"""

import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path("results")
TMDB = "tmdb_vote_average,tmdb_vote_count"  # votes from after the ratings: they would tell what became popular
RUNS = {
    "complete-journey": ["--data", "complete-journey"],
    "movielens-small": ["--data", "movielens-small", "--split", "leave-last-out", "--ignore-columns", TMDB],
    "lctt-zh": ["--data", "lctt-zh", "--split", "leave-last-out"],
}

RETRIEVAL = {
    "amazon-beauty": ["--against-frozen"],
    "amazon-beauty-cold": ["--cold"],
    "lctt-zh": ["--against-frozen", "--config", "benchmarks/scenarios/lctt-zh.toml"],
    "movielens-small": ["--against-frozen", "--ignore-columns", TMDB],
}


def main() -> None:
    folder = Path(os.environ.get("RECSYS_DATA", ""))
    RESULTS.mkdir(exist_ok=True)
    for name, options in RUNS.items():
        if name != "complete-journey":
            if not (folder / name).is_dir():
                print(f"{name}: left out, set RECSYS_DATA to a folder that has it", file=sys.stderr)
                continue
            options = [str(folder / name) if option == name else option for option in options]
        command = [str(Path(sys.executable).parent / "recsys-bench"), "run", *options]
        print(f"== {name}", flush=True)
        subprocess.run([*command, "--out", str(RESULTS / name)], check=True)
    for name, options in RETRIEVAL.items():
        data = folder / name.removesuffix("-cold")
        if data.is_dir():
            print(f"== {name}, stage 1", flush=True)
            command = [sys.executable, "benchmarks/retrieval.py", "--data", str(data), *options]
            subprocess.run([*command, "--out", str(RESULTS / f"{name}-stage1.json")], check=True)


if __name__ == "__main__":
    main()
