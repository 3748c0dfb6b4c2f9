"""The command `recsys`, and what all commands share; `recsys-bench` is `recsys/bench/cli.py`.

Owns arguments, exit codes, and what goes to stdout (results) and stderr (progress, notes, errors). Whatever is heavy is
imported by the command that needs it, so that `--help` answers at once.

Exit codes: 0 done, 1 a bug (with traceback) or another error of the package, 2 usage or configuration, 3 refused to
replace a folder, 65 input data invalid, 69 model or device not to be had, 73 disk full, 74 another I/O error, 75 locked
by another process (try again later), 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import (
    BundleError,
    BundleLocked,
    DeviceUnavailable,
    InvalidConfig,
    InvalidData,
    PublishRefused,
    RecsysError,
)

if TYPE_CHECKING:
    import polars as pl

    from recsys.config import RecommenderConfig
    from recsys.datasets import Dataset

EXIT_CODES: tuple[tuple[type[RecsysError], int], ...] = (
    (InvalidConfig, 2),
    (PublishRefused, 3),
    (InvalidData, 65),
    (BundleLocked, 75),
    (BundleError, 69),
    (DeviceUnavailable, 69),
    (RecsysError, 1),
)
"""The first that fits counts."""

FILTER_SEEN: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


def main(argv: Sequence[str] | None = None) -> int:
    """`recsys`: fit, recommend, doctor. Returns the exit code; wrong usage raises SystemExit(2)."""
    return run(_recsys_parser().parse_args(argv))


def exit_code(error: RecsysError | OSError) -> int:
    """The exit code of an error that is not a bug."""
    if isinstance(error, OSError):
        return 73 if error.errno == errno.ENOSPC else 74
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen command: its exit code, whatever happens."""
    with _logging_to_stderr():
        try:
            return int(arguments.command(arguments))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except (RecsysError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return exit_code(error)
        except Exception:
            traceback.print_exc()
            return 1


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    logger, handler = logging.getLogger("recsys"), logging.StreamHandler(sys.stderr)
    level = logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _recsys_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recsys", description="A two-stage recommender.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands.add_parser("fit", help="learn from tables and save the model"))
    _add_recommend(commands.add_parser("recommend", help="write lists for users to a file"))
    doctor = commands.add_parser("doctor", help="say what this installation can do")
    doctor.add_argument("--json", action="store_true", help="JSON instead of text")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--interactions", metavar="PATH", help="Parquet file or folder, or CSV: who took what when")
    parser.add_argument("--items", metavar="PATH", help="the catalogue")
    parser.add_argument("--users", metavar="PATH", help="further columns about users")
    parser.add_argument("--data", metavar="NAME|FOLDER", help="a data set instead of the tables")
    add_config(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the model goes; an older one is replaced")
    parser.add_argument("--device", help='"auto", "cpu", "cuda" or "cuda:N"')
    parser.set_defaults(command=_fit)


def _add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FOLDER", required=True, help="what recsys fit wrote")
    parser.add_argument("--users", metavar="FILE|-", help="one id a line, or Parquet or CSV with user_id; default: all")
    parser.add_argument("--k", type=int, default=10, help="list length (10)")
    parser.add_argument("--filter-seen", choices=FILTER_SEEN, default="auto", help="leave out what a user has taken")
    parser.add_argument("--allow", metavar="FILE", help="only these items: one id a line, or a table with item_id")
    parser.add_argument("--deny", metavar="FILE", help="not these items")
    parser.add_argument("--diversity", type=float, metavar="0..1", help="prefer items unlike those above; 0: not")
    parser.add_argument("--on-unknown", choices=("fallback", "warn", "raise"), default="fallback", help="new users")
    parser.add_argument("--details", action="store_true", help="add source, the scores behind and is_fallback")
    parser.add_argument("--out", metavar="FILE", required=True, help=".parquet or .csv")
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda" or "cuda:N"')
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command=_recommend)


def add_config(parser: argparse.ArgumentParser) -> None:
    """The options that every fit has."""
    parser.add_argument("--config", metavar="FILE.toml", help="settings; what it does not name keeps its default")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _fit(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    data = _dataset(arguments)
    from recsys.bundle import refuse_foreign
    from recsys.recommender import Recommender

    refuse_foreign(Path(arguments.out).absolute())

    start = time.perf_counter()
    recommender = Recommender(config).fit(data.interactions, data.items, data.users)
    recommender.save(arguments.out)
    seconds = time.perf_counter() - start
    print(f"{arguments.out}: fitted for {len(recommender.users):,} users and saved in {seconds:.0f} s")
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    out = _target(arguments.out, (".parquet", ".csv"))
    from recsys.recommender import Recommender
    from recsys.rules import Rules

    rules = None if arguments.diversity is None else Rules(diversity=arguments.diversity)
    recommender = Recommender.load(arguments.model, device=arguments.device)
    recommender.config = replace(recommender.config, progress=not arguments.quiet)
    items = recommender.items
    users = recommender.users if arguments.users is None else read_ids(arguments.users, recommender.users)
    if users.is_empty():
        raise InvalidData(table=arguments.users, rule="names no user", remedy="give at least one user_id")
    lists: pl.DataFrame = recommender.recommend(
        users,
        arguments.k,
        filter_seen=FILTER_SEEN[arguments.filter_seen],
        allow_items=None if arguments.allow is None else read_ids(arguments.allow, items),
        deny_items=None if arguments.deny is None else read_ids(arguments.deny, items),
        rules=rules,
        on_unknown=arguments.on_unknown,
        details=arguments.details,
    )
    _write(out, lists.write_parquet if out.suffix == ".parquet" else lists.write_csv)
    print(f"{out}: {lists.height:,} rows for {lists['user_id'].n_unique():,} users")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from recsys.doctor import examine

    checks = examine()
    if arguments.json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'warning'}  {check.name:{width}}  {check.value}")
            if check.remedy:
                print(f"{'':{width + 11}}-> {check.remedy}")
    return 69 if any(check.fatal for check in checks) else 0


def _dataset(arguments: argparse.Namespace) -> Dataset:
    """The named data set, or the tables that were given one by one."""
    from recsys.datasets import Dataset, load_dataset
    from recsys.schema import read_table

    tables = {name: getattr(arguments, name) for name in ("interactions", "items", "users")}
    if arguments.data is not None:
        if any(path is not None for path in tables.values()):
            raise InvalidConfig("give either --data or the tables with --interactions and --items, not both")
        return load_dataset(arguments.data)
    if tables["interactions"] is None or tables["items"] is None:
        raise InvalidConfig("give --interactions and --items, or --data with a name or a folder")
    read = {name: read_table(path, name) for name, path in tables.items() if path is not None}
    return Dataset(name=tables["interactions"], **read)


def config_of(arguments: argparse.Namespace, config: RecommenderConfig | None = None) -> RecommenderConfig:
    """The file's settings, or those given, with those of the command line on top; the encoder is known to be there."""
    from indexing.encoder import resolve_encoder
    from recsys.config import RecommenderConfig, read_config

    if config is None:
        config = RecommenderConfig() if arguments.config is None else read_config(arguments.config)
    given: dict[str, Any] = {"progress": not arguments.quiet}
    for name in ("seed", "device"):
        if getattr(arguments, name, None) is not None:
            given[name] = getattr(arguments, name)
    if getattr(arguments, "ignore_columns", None) is not None:
        given["ignore_columns"] = tuple(filter(None, map(str.strip, arguments.ignore_columns.split(","))))
    config = replace(config, **given)
    try:
        resolve_encoder(config.encoder.model)
    except RuntimeError as error:
        raise InvalidConfig(str(error)) from error
    return config


def read_ids(source: str, known: pl.Series) -> pl.Series:
    """Ids from a table's column of the name of `known`, or one a line; those read as text in the type of `known`.

    Raises:
        InvalidData: the file cannot be read, has no such column, or an id of another type.
    """
    import polars as pl

    from recsys.schema import read_table

    suffix = Path(source).suffix
    if suffix not in (".parquet", ".csv"):
        return _cast(pl.Series(known.name, _lines(source, known.name), dtype=pl.String), known.dtype, source)
    table = read_table(source, source)
    if known.name not in table.columns:
        raise InvalidData(
            table=source,
            column=known.name,
            rule=f"the required column is missing; there are: {', '.join(table.columns[:50])}",
            remedy=f"rename one to {known.name}, or give a text file with one id a line",
        )
    return _cast(table[known.name], known.dtype, source) if suffix == ".csv" else table[known.name]


def _lines(source: str, name: str) -> list[str]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InvalidData(
            table=source,
            rule=f"cannot be read as text ({error})",
            remedy=f"give a UTF-8 file with one {name} a line, or a .parquet or .csv file",
        ) from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _cast(ids: pl.Series, dtype: pl.DataType, source: str) -> pl.Series:
    """Ids as the model knows them; as whole numbers only where they are spelt as such ("007" is not)."""
    made = ids.cast(dtype, strict=False)
    lost = ids.is_null() | (made.cast(ids.dtype, strict=False).ne_missing(ids))
    if lost.any():
        raise InvalidData(
            table=source,
            column=ids.name,
            rule=f"an id must be {dtype}, as in the data of the fit",
            count=int(lost.sum()),
            total=len(ids),
            rows=ids.filter(lost).head(5).to_list(),
            remedy="leave these out or spell them as there",
        )
    return made


def _target(out: str, suffixes: tuple[str, ...]) -> Path:
    """Where a file shall be written, checked before the work begins; folders above it are made where absent."""
    path = Path(out)
    if path.suffix not in suffixes:
        raise InvalidConfig(f"--out {out} must end in {' or '.join(suffixes)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the place and rename, so that a reader never meets half a file."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
