"""What became of one item for one user: at which stage it fell out, and at what rank.

Owns the sentence; it is read from a results folder, nothing is fitted.
"""

import argparse
import json
from typing import Any

import polars as pl

from recsys.bench.names import TWO_STAGE
from recsys.bench.result import ResultFolder
from recsys.errors import InvalidData


def explain_pair(folder: ResultFolder, user: str, item: str) -> list[dict[str, Any]]:
    """One answer for each protocol and cut in which the user was asked about.

    Args:
        folder: the results.
        user: id, as text.
        item: id, as text.

    Returns:
        `protocol`, `cut`, `wanted` (whether the item was to be found), `sources`, `candidate_rank`, `final_rank`,
        `other_ranks` (by system), `stage` ("shown", "ranking", "cut off" or "retrieval") and `sentence`.

    Raises:
        InvalidData: the user is in no protocol of the results, or they hold no candidates of the two-stage system.
    """
    is_user, is_item = (
        pl.col(f"{name}_id").cast(pl.String) == value for name, value in (("user", user), ("item", item))
    )
    asked = folder.truth.filter(is_user).select("protocol", "cut").unique().sort("protocol", "cut")
    if asked.is_empty():
        raise InvalidData(
            table=str(folder.path), rule=f"user {user!r} was not tested", remedy="take one of truth.parquet"
        )
    frames = (folder.truth, folder.lists, folder.candidates)
    if all(frame.filter(is_item).is_empty() for frame in frames):
        raise InvalidData(
            table=str(folder.path),
            rule=f"knows no item {item!r}: nobody took it in the test, and no list or candidates hold it",
            remedy="check its spelling",
        )
    if TWO_STAGE not in folder.candidates["system"]:
        raise InvalidData(
            table=str(folder.path),
            rule=f"holds no candidates of {TWO_STAGE!r}",
            remedy=f"run it with --systems that name {TWO_STAGE!r}",
        )
    wanted = folder.truth.filter(is_user & is_item)
    candidates = folder.candidates.filter(is_user & is_item & (pl.col("system") == TWO_STAGE))
    lists = folder.lists.filter(is_user & is_item)
    return [
        _answer(
            folder, here, wanted.filter(_in(here)), candidates.filter(_in(here)), lists.filter(_in(here)), user, item
        )
        for here in asked.iter_rows(named=True)
    ]


def _in(here: dict[str, Any]) -> pl.Expr:
    return pl.col("protocol").eq(str(here["protocol"])) & pl.col("cut").eq(int(here["cut"]))


def _answer(
    folder: ResultFolder,
    here: dict[str, Any],
    wanted: pl.DataFrame,
    candidates: pl.DataFrame,
    lists: pl.DataFrame,
    user: str,
    item: str,
) -> dict[str, Any]:
    k = folder.result.k
    ranks = dict(lists.select("system", "rank").iter_rows())
    final = ranks.pop(TWO_STAGE, None)
    place = candidates["rank"][0] if candidates.height else None
    sources = candidates["source"][0].split("+") if candidates.height and candidates["source"][0] else []
    cold = bool(wanted.height and wanted["cold_item"][0])
    where = f"Under {here['protocol']!r}" + (f", cut {here['cut']}" if len(folder.result.cuts) > 1 else "")
    about = f"item {item} {'was' if wanted.height else 'was not'} what user {user} took"
    if place is None and final is not None:
        stage = "shown" if final <= k else "cut off"
        what = f"it is at rank {final} of the list, though not among the candidates that were kept"
    elif place is None:
        stage = "retrieval"
        what = "no source brought it among the candidates, so the ranker never saw it"
        what += "; it had no interaction before the cut" if cold else ""
    else:
        brought = f"{' and '.join(sources) or 'a source'} brought it to rank {place} of the candidates"
        if final is not None and final <= k:
            stage, what = "shown", f"{brought}, and the ranker put it at rank {final}, in the first {k}"
        elif place <= k:
            stage = "ranking"
            below = f"to rank {final}" if final is not None else "below the lists that were kept"
            what = f"{brought}, inside the first {k}; the ranker pushed it {below}"
        else:
            stage = "cut off"
            there = f"rank {final}" if final is not None else "a rank below the lists that were kept"
            what = f"{brought}; the ranker put it at {there}, not in the first {k}"
    others = [f"{name} at rank {rank}" for name, rank in sorted(ranks.items(), key=lambda pair: pair[1]) if rank <= k]
    also = f" In the first {k} of: {', '.join(others)}." if others else ""
    return {
        **here,
        "wanted": bool(wanted.height),
        "sources": sources,
        "candidate_rank": place,
        "final_rank": final,
        "other_ranks": ranks,
        "stage": stage,
        "sentence": f"{where}, {about}: {what}.{also}",
    }


def command(arguments: argparse.Namespace) -> int:
    """Run `recsys-bench explain`."""
    from pathlib import Path

    found = explain_pair(ResultFolder(Path(arguments.result)), arguments.user, arguments.item)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print("\n".join(answer["sentence"] for answer in found))
    return 0
