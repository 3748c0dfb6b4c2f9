"""Run the scenarios behind README.md's tables: results/NAME/ and in it report.html; progress goes to stderr.

Needs RECSYS_DATA: a folder with the data sets as sub-folders, each with interactions and items. A data set that is not
there is reported and left out. As make does, it keeps a result that is newer than the packages and its scenario, so a
run that was stopped goes on with the scenario it was at. --quick runs the smallest ones only, with the systems that one
fit of ours answers for, under results/quick/; --stage1 compares stage 1 alone instead, which takes hours too.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

RESULTS = Path("results")
HERE = Path(__file__).parent
PACKAGES = ("recsys", "indexing", "ranking")
SCENARIOS = sorted((HERE / "scenarios").glob("*.toml"))
QUICK = ("complete-journey-offers", "oi-wiki-zh")
QUICK_SYSTEMS = "popular,recent-popular,item-knn,buy-again,two-stage: bi-encoder,two-stage: retrieval,two-stage"
TMDB = "tmdb_vote_average,tmdb_vote_count"  # votes from after the ratings: they would tell what became popular
STAGE1 = {
    "amazon-beauty": ["--against-frozen"],
    "amazon-beauty-cold": ["--cold", "--tenths", "3"],
    "lctt-zh": ["--against-frozen", "--config", "benchmarks/settings/lctt-zh.toml"],
    "movielens-small": ["--against-frozen", "--ignore-columns", TMDB],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}, with one fit each")
    only.add_argument("--stage1", action="store_true", help="stage 1 alone: against the frozen encoder, and cold items")
    chosen = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if chosen.stage1:
        compare_stage1()
    else:
        run_scenarios(quick=chosen.quick)


def run_scenarios(*, quick: bool) -> None:
    bench = str(Path(sys.executable).parent / "recsys-bench")
    for scenario in SCENARIOS:
        name = scenario.stem
        data = Path(tomllib.loads(scenario.read_text())["data"]).name
        out = RESULTS / "quick" / name if quick else RESULTS / name
        if (quick and name not in QUICK) or not has_data(data) or is_kept(out / "report.html", scenario):
            continue
        print(f"== {name}", flush=True)
        # 3 says that a column looks like a leak; the results are written, and the report says so too.
        command = [bench, "run", "--scenario", str(scenario), "--out", str(out)]
        code = subprocess.run([*command, *(["--systems", QUICK_SYSTEMS] if quick else [])]).returncode
        if code not in (0, 3):
            sys.exit(code)
        subprocess.run([bench, "report", str(out)], check=True)


def compare_stage1() -> None:
    for name, options in STAGE1.items():
        data, out = name.removesuffix("-cold"), RESULTS / f"{name}-stage1.json"
        if not has_data(data) or is_kept(out, HERE / "retrieval.py"):
            continue
        print(f"== {name}, stage 1", flush=True)
        command = [sys.executable, str(HERE / "retrieval.py"), "--data", str(folder() / data), *options]
        subprocess.run([*command, "--out", str(out)], check=True)


def folder() -> Path:
    return Path(os.environ.get("RECSYS_DATA", "")).absolute()


def has_data(name: str) -> bool:
    there = (folder() / name).is_dir()
    if not there:
        print(f"{name}: left out, set RECSYS_DATA to a folder that has it", file=sys.stderr)
    return there


def is_kept(result: Path, recipe: Path) -> bool:
    """Whether a result is there that is newer than what makes it."""
    if not result.is_file():
        return False
    sources = [recipe, *(source for package in PACKAGES for source in (HERE.parent / package).rglob("*.py"))]
    kept = result.stat().st_mtime > max(source.stat().st_mtime for source in sources)
    if kept:
        print(f"{result}: kept, it is newer than the code; delete it to run it again", file=sys.stderr)
    return kept


if __name__ == "__main__":
    main()
