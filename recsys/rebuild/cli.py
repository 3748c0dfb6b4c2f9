"""The command `recsys-rebuild`.

Owns arguments and signals. Results go to stdout, everything else to stderr; exit codes are those of `recsys/cli.py`,
143 for SIGTERM: what was staged and encoded stays for the next run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from recsys.cli import read_ids
from recsys.cli import run as run_command
from recsys.errors import InvalidConfig, PublishRefused

if TYPE_CHECKING:
    from recsys.rebuild.job import RebuildConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; wrong usage raises SystemExit(2), SIGTERM SystemExit(143)."""
    arguments = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return run_command(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    print("terminated; what was encoded is kept, the next run with the same tables goes on", file=sys.stderr)
    raise SystemExit(143)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recsys-rebuild", description="Bring a stored recommender up to date.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "rebuild from fresh tables, judge, publish, prune")
    run.add_argument("--interactions", metavar="PATH", required=True, help="Parquet file or folder, or CSV: all of it")
    run.add_argument("--items", metavar="PATH", required=True, help="the whole catalogue")
    run.add_argument("--users", metavar="PATH", help="further columns about users")
    run.add_argument("--as-of", metavar="TIME", help="ISO 8601; what lies later is left out")
    run.add_argument("--config", metavar="FILE.toml", help="keep, device, lock_wait and a table [gates]")
    run.add_argument("--force", action="store_true", help="rebuild even where the inputs are the same")
    run.add_argument("--metrics", metavar="FILE.prom", help="also write a Prometheus text file")
    run.add_argument("--noop-exit-code", type=int, default=0, help="exit code where nothing had to be done (0)")
    run.add_argument("--progress", action="store_true", help="bars on stderr")
    init = _command(commands, "init", _init, "make a saved model the first version")
    init.add_argument("--model", metavar="FOLDER", required=True, help="what recsys fit or Recommender.save wrote")
    init.add_argument(
        "--replace", action="store_true", help="also where the store has a live version; no gate compares"
    )
    _command(commands, "status", _status, "what is live")
    verify = _command(commands, "verify", _verify, "check every byte of a version")
    verify.add_argument("--version", metavar="VERSION", help="by default the live one")
    rollback = _command(commands, "rollback", _rollback, "make an older version live")
    rollback.add_argument("--to", metavar="VERSION", help="by default the one before")
    receipt = _command(commands, "receipt", _receipt, "what each version holds of some people")
    receipt.add_argument("--users", metavar="FILE|-", required=True, help="one id a line, or a table with user_id")
    prune = _command(commands, "prune", _prune, "remove old versions")
    prune.add_argument("--keep", type=int, default=3, help="newest versions that stay (3)")
    prune.add_argument("--pin", metavar="VERSION", action="append", default=[], help="one that stays this time too")
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.add_argument("--store", metavar="FOLDER|URL", required=True, help="the store")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.set_defaults(command=function)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    config = replace(_config(arguments.config), progress=arguments.progress)
    from recsys.rebuild.job import run, write_metrics
    from recsys.rebuild.places import open_store

    metrics = None if arguments.metrics is None else Path(arguments.metrics)
    if metrics is not None and not metrics.absolute().parent.is_dir():
        raise InvalidConfig(f"--metrics {metrics}: there is no folder {metrics.parent}; make it first")
    refused = None
    try:
        result = run(
            open_store(arguments.store), arguments.interactions, arguments.items, arguments.users,
            now=datetime.now(UTC), as_of=_moment(arguments.as_of), config=config, force=arguments.force,
        )  # fmt: skip
    except PublishRefused as error:
        if error.result is None:
            raise
        result, refused = error.result, error
    _say(arguments, result.to_dict(), f"{result.outcome}: {result.version}, {result.counts['encoded']:,} texts encoded")
    if metrics is not None:
        write_metrics(result, metrics, now=datetime.now(UTC))
    if refused is not None:
        raise refused
    return arguments.noop_exit_code if result.outcome == "unchanged" else 0


def _init(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.job import init
    from recsys.rebuild.places import create_store

    store = create_store(arguments.store)
    current = init(store, Path(arguments.model), now=datetime.now(UTC), replace=arguments.replace)
    _say(arguments, asdict(current), f"live: {current.version}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.places import open_store

    store = open_store(arguments.store)
    current = store.current()
    versions, refused = store.versions(), store.refused()
    found = {"current": None if current is None else asdict(current), "versions": versions, "refused": refused}
    live = "nothing is live" if current is None else f"live: {current.version} since {current.promoted_at}"
    named = [f"{version} (refused)" if version in refused else version for version in versions]
    _say(arguments, found, f"{live}; versions: {', '.join(named) or 'none'}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.places import open_store

    manifest = open_store(arguments.store).verify(arguments.version)
    size = sum(seal.bytes for seal in manifest.files.values())
    found = {"ok": True, "files": len(manifest.files), "bytes": size, "metadata": manifest.metadata}
    _say(arguments, found, f"ok: {len(manifest.files)} files, {size:,} bytes")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.places import open_store

    current = open_store(arguments.store).rollback(arguments.to, run_id="rollback", promoted_at=datetime.now(UTC))
    _say(arguments, asdict(current), f"live: {current.version}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.places import open_store

    removed = open_store(arguments.store).prune(keep=arguments.keep, pinned=arguments.pin)
    _say(arguments, {"removed": removed}, f"removed: {', '.join(removed) or 'none'}")
    return 0


def _receipt(arguments: argparse.Namespace) -> int:
    from recsys.rebuild.places import open_store
    from recsys.rebuild.receipt import held, known_users

    store = open_store(arguments.store)
    users = read_ids(arguments.users, known_users(store)).unique()
    found = held(store, users)
    lines = [
        f"{one.version}{' (live)' if one.live else ''}: {one.users:,} of {len(users):,} users, "
        f"{one.interactions:,} interactions, {one.attributes:,} rows of attributes"
        for one in found
    ]
    _say(arguments, {"users": len(users), "versions": [asdict(one) for one in found]}, "\n".join(lines))
    return 0


def _config(path: str | None) -> RebuildConfig:
    from recsys.config import build
    from recsys.rebuild.job import RebuildConfig

    if path is None:
        return RebuildConfig()
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"config file {path} cannot be read as TOML: {error}") from error
    made: RebuildConfig = build(RebuildConfig, values, "")
    return made


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidConfig(f"--as-of {text!r} is not ISO 8601, such as 2026-01-31T00:00:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _say(arguments: argparse.Namespace, found: dict[str, Any], text: str) -> None:
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else text)
