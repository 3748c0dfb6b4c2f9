"""Locks on files: one writer of a store, many readers of a bundle.

Owns `flock`: the kernel drops the lock of a process that dies, so none is ever stale. Does not own what is locked.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys.errors import BundleLocked

WAIT_STEP = 0.05
"""Seconds between two tries."""


@contextmanager
def writer_lock(path: Path, run_id: str, wait: float) -> Iterator[None]:
    """Be the only one who holds `path`; the text in it tells others who that is, and nothing more.

    Args:
        path: made where absent, never removed.
        run_id: what others are told.
        wait: seconds to wait for another holder.

    Raises:
        BundleLocked: somebody else holds it.
    """
    with path.open("a+b") as stream:
        tries = int(wait / WAIT_STEP)
        while not _try(stream.fileno(), fcntl.LOCK_EX):
            if tries <= 0:
                raise BundleLocked(f"{path.parent} is being written by {_holder(path)}; try again when it has ended.")
            tries -= 1
            time.sleep(WAIT_STEP)
        with suppress(OSError):  # The text is worth nothing on a full disk, and a rollback must still be possible.
            stream.truncate(0)
            os.write(
                stream.fileno(), json.dumps({"run_id": run_id, "pid": os.getpid(), "host": platform.node()}).encode()
            )
        yield


@contextmanager
def reader_lock(path: Path) -> Iterator[bool]:
    """Keep others from holding `path` for themselves; yields whether that came about and it still is that file."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with stream:
        yield _try(stream.fileno(), fcntl.LOCK_SH) and _still_there(stream.fileno(), path)


@contextmanager
def no_readers(path: Path) -> Iterator[bool]:
    """Keep readers of `path` out; yields False where there is one. A file that is not there has none."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield True
        return
    with stream:
        yield _try(stream.fileno(), fcntl.LOCK_EX)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"run {holder['run_id']} (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
