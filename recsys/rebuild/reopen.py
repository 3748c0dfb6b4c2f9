"""The gate `reopen`: another process opens a sealed folder as any server would and gives the same lists.

In another process, because a damaged model may abort the one that reads it. It is started early, so that it imports
what it needs while the new version is being made; then it is told folder, length and users as JSON on stdin.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    Reader = subprocess.Popen[str]

logger = logging.getLogger(__name__)


@contextmanager
def reader_process() -> Iterator[Reader]:
    """A process that waits for `lists_from`; it does not outlive this context, nor the process that started it."""
    with subprocess.Popen(
        [sys.executable, "-m", "recsys.rebuild.reopen"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def lists_from(process: Reader, folder: Path, users: pl.Series, k: int, *, seconds: float) -> dict[str, list[Any]]:
    """Item ids, best first, by the user's id as a string; nothing where the folder does not open in time."""
    wanted = json.dumps({"folder": str(folder), "users": users.to_list(), "k": k})
    try:
        said, complaints = process.communicate(wanted, timeout=seconds)
        found: dict[str, list[Any]] = dict(json.loads(said)) if process.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError, TypeError) as error:
        found, complaints = {}, str(error)
    if not found:
        logger.warning("%s does not open in another process: %s", folder, complaints.strip()[-2000:])
    return found


def main() -> int:
    """Print one JSON object, user id to item ids."""
    import sentence_transformers  # noqa: F401 - what loading needs and takes seconds; now there is time

    from recsys.recommender import Recommender

    wanted = json.load(sys.stdin)
    recommender = Recommender.load(wanted["folder"], device="cpu")
    recommender.config = replace(recommender.config, progress=False)
    lists = recommender.recommend(wanted["users"], wanted["k"])
    found = {str(user): lists.filter(lists["user_id"] == user)["item_id"].to_list() for user in wanted["users"]}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
