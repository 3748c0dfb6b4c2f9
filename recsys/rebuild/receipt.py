"""What the versions of a store hold of some people: the receipt of a deletion, and what is left to prune.

Owns the look into each version, and into what runs and downloads that were cut off have left in `staging/`. People lie
in histories and users tables and nowhere else: vectors are kept by the texts of items, step logs count, and scores of
the interest model are never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.errors import BundleCorrupt, BundleNotFound
from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one version holds of the people who were asked about.

    Attributes:
        version: its name, or the folder in `staging/`, which `prune` empties.
        live: whether it is what CURRENT names.
        users: how many of them it knows.
        interactions: rows of theirs.
        attributes: rows of theirs in the users table.
    """

    version: str
    live: bool
    users: int
    interactions: int
    attributes: int


def held(store: Store | ObjectStore, users: pl.Series) -> list[Held]:
    """Look for people in every version, oldest first, and in what lies in `staging/`.

    Args:
        store: with a live version.
        users: ids, of the type that the live version has.

    Raises:
        BundleNotFound, BundleCorrupt, BundleIncompatible: a version is not sound, so nobody knows what it holds.
    """
    current = store.current()
    found = []
    for version in store.versions():
        store.verify(version)
        found.append(
            _held(store.bundle(version), version, users, live=current is not None and current.version == version)
        )
    staged = (path for path in sorted((store.root / "staging").iterdir()) if path.is_dir())
    return found + [_held(path, f"staging/{path.name}", users, live=False) for path in staged]


def _held(folder: Path, version: str, users: pl.Series, *, live: bool) -> Held:
    rows = {name: _rows(folder / f"{name}.parquet", users) for name in ("histories", "users")}
    return Held(
        version=version, live=live, users=pl.concat(rows.values()).n_unique(),
        interactions=len(rows["histories"]), attributes=len(rows["users"]),
    )  # fmt: skip


def known_users(store: Store | ObjectStore) -> pl.Series:
    """Ids of everybody with history in the live version.

    Raises:
        BundleNotFound, BundleCorrupt, BundleIncompatible: there is none, or it is not sound.
    """
    current = store.current()
    if current is None:
        raise BundleNotFound(f"{store.root} has no live version yet; recsys-rebuild init makes the first.")
    store.verify()
    return pl.read_parquet(store.bundle(current.version) / "histories.parquet", columns=["user_id"])["user_id"].unique()


def _rows(path: Path, users: pl.Series) -> pl.Series:
    """The id in each row that is about one of them, as text."""
    if not path.exists():
        return pl.Series("user_id", [], dtype=pl.String)
    try:
        ids = pl.read_parquet(path, columns=["user_id"])["user_id"].cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise BundleCorrupt(
            f"{path} cannot be read ({error}), so nobody knows whom it holds; prune, or repair."
        ) from error
    return ids.filter(ids.is_in(users.cast(pl.String).implode()))
