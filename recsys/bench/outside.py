"""Systems that live elsewhere: what they need to be fitted and asked, and their lists beside ours.

Owns the two exchanges: a split written for another program, and the lists that it gives back.

    FOLDER/split.json       `dataset`, `test_hash`, `depth` (how long the lists may be) and how it was cut
    FOLDER/items.parquet    the catalogue
    FOLDER/train-0.parquet  canonical interactions to fit on, one file a cut
    FOLDER/asked.parquet    cut, protocol, filter_seen, user_id: whom to make lists for, and whether what a user has
                            taken is left out

    lists.parquet           test_hash, system, cut, protocol, user_id, item_id, rank (from 1), score, fit_seconds,
                            ask_seconds, peak_mb; the last three are the same in all rows of a system, cut and protocol

Nothing of the test is written but whom it holds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recsys.bench.protocols import DEPTH, Prepared, Protocol
from recsys.bench.result import as_json
from recsys.bench.systems import Answers, refuse_foreign
from recsys.errors import InvalidConfig, InvalidData
from recsys.profiling import Usage
from recsys.splits import hash_of

SPLIT = "split.json"
NUMBERS = ("fit_seconds", "ask_seconds", "peak_mb")
COLUMNS = ("test_hash", "system", "cut", "protocol", "user_id", "item_id", "rank", "score", *NUMBERS)


def write_split(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Write what another program needs, folders above made where absent; an older split is overwritten.

    Returns:
        What `split.json` holds.

    Raises:
        InvalidConfig: the folder holds something else.
        OSError: the folders above it cannot be made.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / SPLIT).is_file()):
        raise InvalidConfig(f"{folder} exists and holds no split; give another folder or remove it")
    about = {
        "dataset": prepared.dataset,
        "test_hash": test_hash(prepared),
        "depth": DEPTH,
        "split": prepared.split.kind,
        "cuts": [cut.split.as_of.isoformat() for cut in prepared.cuts],
        "settings": dict(prepared.settings),
    }
    asked = [
        pl.DataFrame({"user_id": protocol.users}).select(
            cut=pl.lit(cut.place, dtype=pl.Int32),
            protocol=pl.lit(protocol.name),
            filter_seen=pl.lit(protocol.filter_seen),
            user_id="user_id",
        )
        for cut in prepared.cuts
        for protocol in cut.protocols
    ]
    folder.mkdir(parents=True, exist_ok=True)
    prepared.tables.items.write_parquet(folder / "items.parquet")
    for cut in prepared.cuts:
        cut.split.train.write_parquet(folder / f"train-{cut.place}.parquet")
    pl.concat(asked).write_parquet(folder / "asked.parquet")
    (folder / SPLIT).write_text(as_json(about), encoding="utf-8")
    return json.loads(as_json(about))  # type: ignore[no-any-return]


def read_lists(path: str | Path, prepared: Prepared, taken: Sequence[str] = ()) -> list[Answers]:
    """The lists that other systems made for this split, as answers.

    Args:
        path: of `lists.parquet`.
        prepared: what they were asked.
        taken: names that other systems have.

    Raises:
        InvalidData: the file is none, lacks a column, is of another split, or holds a system of a name that is taken,
            or numbers of a system that differ from row to row.
    """
    found = _read(path)
    mine = test_hash(prepared)
    if found["test_hash"].to_list() and set(found["test_hash"]) != {mine}:
        raise _refusal(
            path,
            f"is of another test ({found['test_hash'][0]}; this one is {mine})",
            "make the lists for this split: recsys-bench split with the same arguments",
        )
    double = sorted(set(found["system"]) & set(taken))
    if double:
        raise _refusal(path, f"holds a system {double[0]!r}, which is there already", "give it another name")
    known = {protocol.name for cut in prepared.cuts for protocol in cut.protocols}
    foreign = sorted(set(found["protocol"].cast(pl.String).fill_null("null")) - known)
    if foreign:
        raise _refusal(path, f"has the protocol {foreign[0]!r}", f"this split has: {', '.join(sorted(known))}")
    answers = []
    for system in found["system"].unique(maintain_order=True):
        for cut in prepared.cuts:
            for protocol in cut.protocols:
                rows = found.filter(system=system, cut=cut.place, protocol=protocol.name)
                if rows.height:
                    answers.append(_answer(rows, prepared, protocol, path))
    return answers


def test_hash(prepared: Prepared) -> str:
    """Of all test pairs, as in the result."""
    return hash_of(*(cut.split.test for cut in prepared.cuts))


def _answer(rows: pl.DataFrame, prepared: Prepared, protocol: Protocol, path: str | Path) -> Answers:
    system = str(rows["system"][0])
    numbers = rows.select(NUMBERS).unique()
    if numbers.height > 1 or sum(numbers.null_count().row(0)):
        raise _refusal(
            path, f"{', '.join(NUMBERS)} of {system!r} must be one number for each cut and protocol", "repeat it"
        )
    fit, ask, peak = (float(value) for value in numbers.row(0))
    for name, known in (("user_id", protocol.users), ("item_id", prepared.tables.items["item_id"])):
        if rows[name].dtype != known.dtype:
            raise _refusal(path, f"{name} is {rows[name].dtype}, in the data it is {known.dtype}", "keep the ids' type")
    refuse_foreign(rows, protocol.users, prepared.tables.items["item_id"], table=f"{path}, lists of {system}")
    lists = rows.select("user_id", "item_id", pl.col("rank").cast(pl.Int32), pl.col("score").cast(pl.Float64))
    return Answers(
        system=system,
        protocol=protocol.name,
        lists=lists.filter(pl.col("rank") <= prepared.depth),
        candidates=lists.filter(pl.col("rank") <= DEPTH),
        fit=Usage(seconds=fit, peak_mb=peak),
        ask=Usage(seconds=ask, peak_mb=peak),
        cut=int(rows["cut"][0]),
    )


def _read(path: str | Path) -> pl.DataFrame:
    try:
        found = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _refusal(path, f"cannot be read ({error})", "give a file of lists in Parquet") from error
    missing = [name for name in COLUMNS if name not in found.columns]
    if missing:
        raise _refusal(path, f"the column {missing[0]} is missing", f"give {', '.join(COLUMNS)}")
    wrong = [name for name in ("cut", "rank", "score") if not found[name].dtype.is_numeric()]
    if wrong:
        raise _refusal(path, f"{wrong[0]} is {found[wrong[0]].dtype}, not a number", "keep to the form of the docs")
    if found.is_empty() or found["system"].null_count():
        raise _refusal(path, "has no row, or a row without system", "give the lists of at least one system")
    return found


def _refusal(path: str | Path, rule: str, remedy: str) -> InvalidData:
    return InvalidData(table=str(path), rule=rule, remedy=remedy)
