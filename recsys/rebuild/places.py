"""Which kind of store lies at a place: a folder of this machine, or a URL.

Owns the choice, and where a URL's work folder lies by default.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.store import Store


def open_store(place: str | Path, work: Path | None = None) -> Store | ObjectStore:
    """The store at a folder, or at a URL such as `s3://bucket/prefix`.

    Args:
        place: where.
        work: for a URL, the local folder of staging, logs and copies; by default one in `~/.cache/recsys-twostage`.
    """
    return (
        ObjectStore.open(str(place), work or _default_work(str(place))) if _is_url(place) else Store.open(Path(place))
    )


def create_store(place: str | Path, work: Path | None = None) -> Store | ObjectStore:
    """As `open_store`, where there is none yet."""
    if _is_url(place):
        return ObjectStore.create(str(place), work or _default_work(str(place)))
    return Store.create(Path(place))


def _is_url(place: str | Path) -> bool:
    return isinstance(place, str) and "://" in place


def _default_work(url: str) -> Path:
    return Path.home() / ".cache" / "recsys-twostage" / hashlib.sha256(url.encode()).hexdigest()[:16]
