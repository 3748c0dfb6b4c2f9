"""Run the scenarios behind README.md's tables: results/NAME/ and in it report.html; progress goes to stderr.

Needs RECSYS_DATA: a folder with the data sets as sub-folders, each with interactions and items. A data set that is not
there is reported and left out. --quick runs the smallest ones only, with the systems that one fit of ours answers for.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path("results")
TMDB = "tmdb_vote_average,tmdb_vote_count"  # votes from after the ratings: they would tell what became popular
SCENARIOS = sorted(Path(__file__).with_name("scenarios").glob("*.toml"))
QUICK = ("complete-journey-offers", "oi-wiki-zh")
QUICK_SYSTEMS = "popular,recent-popular,item-knn,buy-again,two-stage: bi-encoder,two-stage: retrieval,two-stage"
RETRIEVAL = {
    "amazon-beauty": ["--against-frozen"],
    "amazon-beauty-cold": ["--cold"],
    "lctt-zh": ["--against-frozen", "--config", "benchmarks/settings/lctt-zh.toml"],
    "movielens-small": ["--against-frozen", "--ignore-columns", TMDB],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, with one fit each")
    quick = parser.parse_args().quick
    folder = Path(os.environ.get("RECSYS_DATA", "")).absolute()
    RESULTS.mkdir(exist_ok=True)
    bench = str(Path(sys.executable).parent / "recsys-bench")
    for scenario in SCENARIOS:
        name = scenario.stem
        if quick and name not in QUICK:
            continue
        if not (folder / name).is_dir():
            print(f"{name}: left out, set RECSYS_DATA to a folder that has it", file=sys.stderr)
            continue
        print(f"== {name}", flush=True)
        # 3 says that a column looks like a leak; the results are written, and the report says so too.
        command = [bench, "run", "--scenario", str(scenario), "--out", str(RESULTS / name)]
        code = subprocess.run([*command, *(["--systems", QUICK_SYSTEMS] if quick else [])]).returncode
        if code not in (0, 3):
            sys.exit(code)
        subprocess.run([bench, "report", str(RESULTS / name)], check=True)
    for name, options in () if quick else RETRIEVAL.items():
        data = folder / name.removesuffix("-cold")
        if data.is_dir():
            print(f"== {name}, stage 1", flush=True)
            command = [sys.executable, "benchmarks/retrieval.py", "--data", str(data), *options]
            subprocess.run([*command, "--out", str(RESULTS / f"{name}-stage1.json")], check=True)


if __name__ == "__main__":
    main()
