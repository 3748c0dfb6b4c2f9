"""The command `recsys-bench`.

Owns its arguments; results go to stdout, progress and notes to stderr. Whatever is heavy is imported by the command
that needs it. Exit codes are those of `recsys/cli.py`; 3 means a regression, a leak, or numbers too good to be true.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.bench.arguments import add_readers
from recsys.cli import add_config, config_of, run
from recsys.errors import InvalidConfig

if TYPE_CHECKING:
    from recsys.config import RecommenderConfig

SPLITS = ("time", "rolling", "leave-last-out", "random")
SYSTEMS = """\
systems:
  popular, recent-popular, item-knn, buy-again, ease, tfidf, item-knn+tfidf, ials
                                    baselines (ials needs the extra of that name)
  two-stage                         both stages
  two-stage: retrieval              stage 1 alone, all sources
  two-stage: bi-encoder             stage 1 alone, one search of the index
  two-stage: source:NAME            one source alone: covisitation, ease, lexical, lookalike, similar, new, category,
                                    popular, recent, trending, repeat, vector
  two-stage: no interest            without the cross-encoder (a fit of its own)
  two-stage: no text                without titles, descriptions and categories (a fit of its own)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`recsys-bench`. Returns the exit code; wrong usage raises SystemExit(2)."""
    return run(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recsys-bench", description="Offline evaluation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser(
        "run", help="measure systems on one data set", epilog=SYSTEMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ))  # fmt: skip
    _add_split(commands.add_parser("split", help="write what another program needs, whose lists run --lists takes"))
    _add_profile(commands.add_parser("profile", help="speed and memory of systems, without metrics"))
    _add_tune(commands.add_parser("tune", help="search settings on a validation window; the test is never seen"))
    _add_compare(commands.add_parser("compare", help="is the second result better than the first?"))
    _add_gate(
        commands.add_parser("gate", help="exit 3 where a result is worse than a baseline, or too good to be true")
    )
    add_readers(commands)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_systems(parser)
    parser.add_argument("--k", type=int, help="main list length (10)")
    parser.add_argument("--ks", metavar="5,10,20", help="further list lengths (5,10,20)")
    parser.add_argument("--segments", metavar="A,B", help="columns of items and users to report by (the first few)")
    parser.add_argument("--samples", type=int, metavar="N", help="of the bootstrap (1000)")
    parser.add_argument("--out", metavar="FOLDER", help="results folder; older results in it are replaced")
    parser.add_argument(
        "--lists",
        metavar="FILE",
        action="append",
        default=[],
        help="lists of another program, for the same split; again for more",
    )
    parser.add_argument("--track", choices=("tensorboard", "wandb", "mlflow"), help="log the numbers there too")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    parser.set_defaults(command=_run)


def _add_split(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="split.json, items, train and whom to ask")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of text")
    parser.set_defaults(command=_split)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_systems(parser)
    parser.add_argument("--out", metavar="FILE.json", help="also write it to a file")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.set_defaults(command=_profile)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="NAME|FOLDER", help="complete-journey, synthetic, or a folder")
    parser.add_argument("--scenario", metavar="FILE.toml", help="arguments as a file; those given here win")
    parser.add_argument("--split", choices=SPLITS, help="how test is cut off (time)")
    parser.add_argument("--test-share", type=float, help="of the interactions; not for leave-last-out (0.1)")
    parser.add_argument("--min-items", type=int, help="of a test user, for --split leave-last-out (5)")
    parser.add_argument("--cuts", type=int, help="for --split rolling (3)")
    parser.add_argument("--repeats", choices=("auto", "yes", "no"), help="whether repeated pairs count as hits (auto)")
    add_config(parser)
    parser.add_argument("--ignore-columns", metavar="A,B", help="item columns that must not become features")


def _add_systems(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--systems", metavar="A,B", help="names, see recsys-bench run --help")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--space", metavar="FILE.toml", required=True, help="[space]: key = [choices] or {low, high}")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="trials and best.toml; a search in it goes on")
    parser.add_argument("--system", default="two-stage", help="whose ndcg counts (two-stage)")
    parser.add_argument("--n-trials", type=int, default=20, metavar="N", help="in all, with those of former runs (20)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="no trial begins after that")
    parser.add_argument("--k", type=int, help="length of the lists (10)")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of text")
    parser.set_defaults(command=_tune)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="results folder, the older")
    parser.add_argument("b", metavar="B", help="results folder, the newer; differences are B minus A")
    parser.add_argument("--metrics", metavar="ndcg@10,recall@10", help="what to compare")
    parser.add_argument("--systems", metavar="X,Y", help="X of A with Y of B; default: each system with itself")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="of the bootstrap (1000)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.set_defaults(command=_compare)


def _add_gate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", metavar="RESULT", help="results folder or its result.json")
    parser.add_argument("--against", metavar="BASELINE", required=True, help="results folder, or a result.json")
    parser.add_argument("--system", default="two-stage", help="who must not get worse (two-stage)")
    parser.add_argument("--metric", help="such as ndcg@10, the default at the result's k")
    parser.add_argument("--tolerance", type=float, default=0.02, help="relative loss that is allowed (0.02)")
    parser.add_argument("--jump", type=float, default=2.0, help="a gain above this factor is too good (2)")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.set_defaults(command=_gate)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        from recsys.bench.run import refuse_foreign

        refuse_foreign(Path(arguments.out))
    given, config = _arguments(arguments)
    from recsys.bench.plain import render
    from recsys.bench.result import as_json
    from recsys.bench.run import run_bench
    from recsys.datasets import load_dataset

    data = load_dataset(given.pop("data"))
    result = run_bench(
        data, config, **given, out=arguments.out, tracker=arguments.track, lists=arguments.lists,
        progress=config.progress,
    )  # fmt: skip
    print(as_json(result.to_dict()) if arguments.json else render(result), end="")
    for flag in result.flags:
        print(f"{flag.kind}: {flag.message}", file=sys.stderr)
    return 3 if any(flag.kind == "leak" for flag in result.flags) else 0


def _split(arguments: argparse.Namespace) -> int:
    given, config = _arguments(arguments)
    from recsys.bench.outside import write_split
    from recsys.bench.protocols import prepare
    from recsys.bench.result import as_json
    from recsys.datasets import load_dataset

    data = load_dataset(given.pop("data"))
    for name in ("systems", "n_samples"):  # of a scenario
        given.pop(name, None)
    about = write_split(prepare(data, config, **given), Path(arguments.out))
    print(as_json(about) if arguments.json else f"{arguments.out}: test {about['test_hash']}\n", end="")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    if arguments.out is not None:
        Path(arguments.out).absolute().parent.mkdir(parents=True, exist_ok=True)
    given, config = _arguments(arguments)
    from recsys.bench.profile import profile, render_profile
    from recsys.bench.result import as_json
    from recsys.datasets import load_dataset

    data = load_dataset(given.pop("data"))
    measured = profile(data, config, **given, progress=config.progress)
    if arguments.out is not None:
        Path(arguments.out).write_text(as_json(measured), encoding="utf-8")
    print(as_json(measured) if arguments.json else render_profile(measured), end="")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    given, config = _arguments(arguments)
    from recsys.bench.result import as_json
    from recsys.bench.space import read_space
    from recsys.bench.tune import tune
    from recsys.bench.tune_page import tune_headline
    from recsys.datasets import load_dataset

    space = read_space(arguments.space, config)
    data = load_dataset(given.pop("data"))
    for name in ("systems", "ks", "segments", "n_samples"):  # of a scenario
        given.pop(name, None)
    found = tune(
        data, space, config, **given, out=arguments.out, system=arguments.system,
        n_trials=arguments.n_trials, timeout=arguments.timeout, progress=config.progress,
    )  # fmt: skip
    print(as_json(found.to_dict()) if arguments.json else f"{tune_headline(found)}\n{arguments.out}\n", end="")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from recsys.bench.comparison import compare, render_comparison
    from recsys.bench.result import as_json

    systems = None if arguments.systems is None else tuple(_names(arguments.systems))
    if systems is not None and len(systems) != 2:
        raise InvalidConfig(f"--systems {arguments.systems} must name two: one of A, one of B")
    found = compare(
        arguments.a, arguments.b,
        metrics_of=None if arguments.metrics is None else _names(arguments.metrics),
        systems=systems, n_samples=arguments.samples,
    )  # fmt: skip
    print(as_json(found) if arguments.json else render_comparison(found), end="")
    return 0


def _gate(arguments: argparse.Namespace) -> int:
    from recsys.bench.gating import gate

    found = gate(
        arguments.result, arguments.against,
        system=arguments.system, metric=arguments.metric, tolerance=arguments.tolerance, jump=arguments.jump,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join([*(f"{check['verdict']}: {check['message']}" for check in found["checks"]), found["verdict"]]))
    return 0 if found["verdict"] == "passed" else 3


def _arguments(arguments: argparse.Namespace) -> tuple[dict[str, Any], RecommenderConfig]:
    """What `run_bench` is called with, and the configuration: the command line over the scenario over defaults."""
    from recsys.bench.scenario import Scenario, read_scenario

    scenario = Scenario() if arguments.scenario is None else read_scenario(arguments.scenario)
    if scenario.config and arguments.config:
        raise InvalidConfig("give the settings in the scenario's [config] or with --config, not both")
    given = dict(scenario.values)
    ignored = given.pop("ignore_columns", None)
    names = {"data": "data", "split": "split", "test_share": "test_share", "min_items": "min_items", "cuts": "n_cuts",
             "repeats": "repeats", "k": "k", "samples": "n_samples"}  # fmt: skip
    given |= {
        key: getattr(arguments, name) for name, key in names.items() if getattr(arguments, name, None) is not None
    }
    for name in ("systems", "segments"):
        if getattr(arguments, name, None) is not None:
            given[name] = _names(getattr(arguments, name))
    if getattr(arguments, "ks", None) is not None:
        given["ks"] = _numbers(arguments.ks)
    if "data" not in given:
        raise InvalidConfig("give --data with a name or a folder, or a --scenario that names one")
    config = _settings(arguments, scenario.config)
    if ignored is not None and arguments.ignore_columns is None:
        config = replace(config, ignore_columns=tuple(ignored))
    return given, config


def _settings(arguments: argparse.Namespace, values: dict[str, Any]) -> RecommenderConfig:
    if not values:
        return config_of(arguments)
    from recsys.config import config_from_dict

    return config_of(arguments, config_from_dict(values))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError as error:
        raise InvalidConfig(f"--ks {text} must be whole numbers with commas between them") from error
