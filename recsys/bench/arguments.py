"""Arguments of the commands that read what others wrote: report, explain, off-policy.

Owns no more than names and help: a command's module is imported when the command is run, so that --help is light.
"""

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any


def add_readers(commands: Any) -> None:
    """Add the commands to those of recsys-bench."""
    _add_report(commands.add_parser("report", help="results as one HTML file"))
    _add_explain(commands.add_parser("explain", help="at which stage an item fell out for a user"))
    _add_off_policy(
        commands.add_parser("off-policy", help="what a new policy would have earned, from logged impressions")
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", metavar="RESULT", help="results folder")
    parser.add_argument("--out", metavar="FILE.html", help="default: report.html in the results folder")
    parser.add_argument("--json", action="store_true", help="say in JSON where it is and what its headline is")
    parser.set_defaults(command=_of("html_report"))


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", metavar="RESULT", help="results folder")
    parser.add_argument("--user", required=True, help="user_id")
    parser.add_argument("--item", required=True, help="item_id")
    parser.add_argument("--json", action="store_true", help="JSON instead of sentences")
    parser.set_defaults(command=_of("explain_pair"))


def _add_off_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", metavar="FILE", required=True, help="impression_id, item_id, reward, propensity, user_id"
    )
    parser.add_argument(
        "--policy", metavar="FILE", required=True, help="impression_id or user_id, item_id, probability"
    )
    parser.add_argument("--reward", metavar="COLUMN", default="reward", help="the log's column of rewards (reward)")
    parser.add_argument("--propensity", type=float, metavar="P", help="the same for all rows of a log without it")
    parser.add_argument("--clip", type=float, metavar="W", help="largest weight")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of text")
    parser.set_defaults(command=_of("off_policy"))


def _of(module: str) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        return int(import_module(f"recsys.bench.{module}").command(arguments))

    return command
