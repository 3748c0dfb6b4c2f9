"""A store of versions in a folder: immutable bundles, and CURRENT, which names the live one.

Owns the layout, the writer's lock, publishing, promoting, rolling back and pruning. Does not own what is in a bundle,
whether it is good enough (the gates), or the time: moments are handed in.

The only moment at which something becomes live is the rename of CURRENT. Before it everything that the new record
names is on disk, names included; after it nothing is removed that the old record named. So a process that dies
anywhere, or a machine that loses power, leaves the old version live or the new one, whole.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from recsys.bundle import (
    MANIFEST,
    REMEDY,
    Manifest,
    open_bundle,
    parse_manifest,
    replace_file,
    seal_bundle,
    sha256_of,
    sync,
)
from recsys.errors import (
    BundleCorrupt,
    BundleIncompatible,
    BundleNotFound,
    PublishRefused,
)
from recsys.rebuild.current import (
    REPAIR,
    STORE_FORMAT,
    VERSION,
    Current,
    check_contents,
    check_run_id,
    check_version,
    check_was_good,
    content_hash_of,
    following,
    order,
    refused_among,
    superfluous,
    version_of,
)
from recsys.rebuild.locks import no_readers, reader_lock, writer_lock
from recsys.rebuild.run_log import RunLog

FOLDERS = ("bundles", "staging", "runs", "embeddings", "promotions")


class Store:
    """A store in a folder of this machine; make one with `create` or `open`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._log = RunLog(self.root / "runs")
        self._holder: int | None = None

    @classmethod
    def create(cls, root: Path) -> Store:
        """Make a store in a folder that is absent or empty; a store that is already there is opened.

        Raises:
            PublishRefused: the folder holds something else.
            BundleIncompatible: it is a store of another format.
        """
        root = root.absolute()
        if os.path.lexists(root) and not root.is_dir():
            raise PublishRefused(f"{root} is a file, not a folder; choose another place.")
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "FORMAT").exists():
            if any(path.name != ".FORMAT.new" for path in root.iterdir()):
                raise PublishRefused(f"{root} holds files but no FORMAT, so it is not a store; choose an empty folder.")
            replace_file(root / "FORMAT", f"{STORE_FORMAT}\n".encode())
        store = cls.open(root)
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)
        sync(root)
        return store

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open a store; nothing is written, so a read-only place will do.

        Raises:
            BundleNotFound: there is no store.
            BundleIncompatible: it has a format that this version does not know.
        """
        try:
            found = (root / "FORMAT").read_bytes().strip()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleNotFound(f"{root} is not a store; check the path, or make one: recsys-rebuild init.") from error
        if found != STORE_FORMAT.encode():
            raise BundleIncompatible(
                f"{root} has format {found[:20].decode(errors='replace')!r}, this version reads {STORE_FORMAT!r}; "
                "use the version of recsys-twostage that made it."
            )
        return cls(root)

    def current(self) -> Current | None:
        """What is live; None before the first promotion.

        Raises:
            BundleCorrupt: CURRENT is damaged.
        """
        try:
            raw = (self.root / "CURRENT").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleCorrupt(f"{self.root / 'CURRENT'} cannot be read ({error}); {REPAIR}.") from error
        return Current.parse(raw, self.root / "CURRENT")

    def bundle(self, version: str) -> Path:
        """Folder of a version, not yet verified; BundleNotFound where it is not there."""
        folder = self.root / "bundles" / check_version(version)
        if not folder.is_dir():
            there = ", ".join(self.versions()) or "none"
            raise BundleNotFound(f"{self.root} holds no version {version}; there are: {there}.")
        return folder

    def refused(self) -> list[str]:
        """The versions that their gates kept from being live, as far as their manifests can be read."""
        return refused_among(
            self.versions(),
            lambda version: parse_manifest((self.bundle(version) / MANIFEST).read_bytes(), version),
            self._promotions(),
        )

    def versions(self) -> list[str]:
        """The versions that exist, oldest first: by promotion, those never promoted by stamp among them."""
        bundles = self.root / "bundles"
        names = [path.name for path in bundles.iterdir()] if bundles.is_dir() else []
        return order(filter(VERSION.fullmatch, names), self._promotions())

    def content_hash(self, version: str) -> str:
        """sha256 over the paths and hashes of a version's files: the same content, the same hash."""
        return content_hash_of(open_bundle(self.bundle(version)))

    def verify(self, version: str | None = None) -> Manifest:
        """Check every byte of a version, by default the live one.

        Raises:
            BundleNotFound: there is none.
            BundleCorrupt: something is missing, extra or changed, or CURRENT means another manifest.
            BundleIncompatible: the bundle has another format.
        """
        current = self.current() if version is None else None
        if version is None and current is None:
            raise BundleNotFound(f"{self.root} has no live version yet; recsys-rebuild init makes the first.")
        folder = self.bundle(str(version) if current is None else current.version)
        manifest = open_bundle(folder)
        if not folder.name.endswith(content_hash_of(manifest)[:8]):
            raise BundleCorrupt(f"{folder} holds another version's files; {REMEDY}.")
        if current is not None and sha256_of(folder / MANIFEST) != current.manifest_sha256:
            raise BundleCorrupt(f"{folder} has another manifest than {self.root / 'CURRENT'} names; {REPAIR}.")
        return manifest

    @contextmanager
    def lock(self, run_id: str, *, wait: float = 0.0) -> Iterator[None]:
        """Be the only writer. The kernel drops the lock of a process that dies, so none is ever stale.

        Args:
            run_id: told to whoever is refused.
            wait: seconds to wait for another writer.

        Raises:
            BundleLocked: another writer is at work.
        """
        with writer_lock(self.root / "LOCK", check_run_id(run_id), wait):
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    @contextmanager
    def reading(self, version: str) -> Iterator[Path]:
        """Hold a version: it is not pruned before this ends. Yields its folder, not yet verified.

        Raises:
            BundleNotFound: it is not there, or is being pruned.
        """
        folder = self.bundle(version)
        with reader_lock(folder / MANIFEST) as held:
            if not held:
                raise BundleNotFound(f"{self.root} no longer holds version {version}; read CURRENT again.")
            yield folder

    def stage(self, run_id: str) -> Path:
        """The folder in which a run builds; what an interrupted run left in it is kept."""
        folder = self.root / "staging" / check_run_id(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def published(self, run_id: str) -> str | None:
        """The version that a run has published, so that one killed just afterwards need not build it again."""
        for entry in reversed(self.steps(run_id)):
            if entry["step"] == "publish" and (self.root / "bundles" / entry["version"]).is_dir():
                return str(entry["version"])
        return None

    def publish(self, run_id: str, metadata: dict[str, Any], *, as_of_stamp: datetime) -> str:
        """Seal what a run has staged and put it among the bundles, whole and on disk; it is not live yet.

        Once more after a crash, it goes on from where it was. The same content at the same stamp is one version.

        Args:
            run_id: whose staging.
            metadata: for the manifest (JSON values).
            as_of_stamp: the first part of the version's name.

        Returns:
            The version.

        Raises:
            PublishRefused: nothing is staged, or a file that a bundle must not hold.
            BundleCorrupt: the version is there already, damaged, and live or held by a reader.
            BundleLocked: another writer is at work.
        """
        with self._writing(run_id):
            staging = self.root / "staging" / check_run_id(run_id)
            if not staging.is_dir() and (done := self.published(run_id)):
                return done
            (staging / MANIFEST).unlink(missing_ok=True)
            check_contents((path.relative_to(staging).as_posix() for path in _files(staging)), staging)
            manifest = seal_bundle(staging, metadata)
            version = version_of(manifest, as_of_stamp)
            target = self.root / "bundles" / version
            self.append_step(run_id, "publish", version=version)
            if self._is_sound(version):
                shutil.rmtree(staging)
            else:
                target.parent.mkdir(exist_ok=True)
                staging.rename(target)
            sync(target.parent)
            sync(staging.parent)
            return version

    def promote(self, version: str, *, run_id: str, reason: str, promoted_at: datetime) -> Current:
        """Make a version live, after checking every byte of it; nothing happens where it is live already.

        Raises:
            BundleNotFound, BundleCorrupt, BundleIncompatible: the version is not fit to be live.
            BundleLocked: another writer is at work.
            OSError: the record cannot be written; what was live stays so.
        """
        with self._writing(run_id):
            current = self.current()
            if current is not None and current.version == version:
                self.verify()
                return current
            check_contents(self.verify(version).files, version)
            return self._commit(current, version, run_id, reason, promoted_at)

    def rollback(self, to: str | None = None, *, run_id: str, promoted_at: datetime) -> Current:
        """Make an older version live, by default the one before; with `to` it also repairs a damaged CURRENT.

        Raises:
            BundleNotFound: there is nothing to go back to.
            BundleCorrupt: the version is damaged, or CURRENT is and `to` is not given.
            PublishRefused: the version never was live, since its gates refused it.
        """
        with self._writing(run_id):
            try:
                current = self.current()
            except BundleCorrupt:
                if to is None:
                    raise
                current = None
            to = to or (None if current is None else current.previous)
            if to is None:
                raise BundleNotFound(f"{self.root} has no earlier version to go back to; name one with --to.")
            check_was_good(to, self.verify(to), self._promotions())
            left = "a damaged CURRENT" if current is None else current.version
            return self._commit(current, to, run_id, f"rollback from {left}", promoted_at)

    def prune(self, *, keep: int = 3, pinned: Iterable[str] = ()) -> list[str]:
        """Remove old versions and whatever dead runs have staged.

        Args:
            keep: how many of the newest versions stay.
            pinned: versions that stay. The live one, the one before, and those that a reader holds always do.

        Returns:
            What was removed.

        Raises:
            BundleCorrupt: CURRENT is damaged, so nobody knows what is live.
            BundleLocked: another writer is at work.
        """
        with self._writing("prune"):
            victims = superfluous(self.versions(), self.current(), keep, pinned)
            self._clear_staging()
            return self.drop(victims)

    def drop(self, versions: Iterable[str]) -> list[str]:
        """Remove these versions but those that a reader holds; what was removed.

        Raises:
            BundleLocked: another writer is at work.
        """
        with self._writing("drop"):
            return [version for version in versions if self._remove(version)]

    def append_step(self, run_id: str, step: str, **facts: Any) -> None:
        """Add a step to a run's log."""
        self._log.append(run_id, step, **facts)

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The log of a run, oldest step first."""
        return self._log.steps(run_id)

    @contextmanager
    def _writing(self, run_id: str) -> Iterator[None]:
        """The lock, unless this thread holds it."""
        if self._holder == threading.get_ident():
            yield
        else:
            with self.lock(run_id):
                yield

    def _commit(self, base: Current | None, version: str, run_id: str, reason: str, at: datetime) -> Current:
        raw = (self.bundle(version) / MANIFEST).read_bytes()
        new = following(base, max(self._promotions(), default=0), version, raw, run_id, reason, at)
        (self.root / "promotions").mkdir(exist_ok=True)
        # The record of the promotion comes first: whatever becomes of CURRENT, no seq is given twice.
        replace_file(self.root / "promotions" / f"{new.seq:08}.json", new.to_bytes())
        replace_file(self.root / "CURRENT", new.to_bytes())
        return new

    def _promotions(self) -> dict[int, str]:
        """Versions by the seq of their promotions; a damaged record counts with its seq alone."""
        found: dict[int, str] = {}
        folder = self.root / "promotions"
        for path in folder.glob("[0-9]*.json") if folder.is_dir() else ():
            try:
                found[int(path.stem)] = Current.parse(path.read_bytes(), path).version
            except BundleCorrupt:
                found[int(path.stem)] = ""
        return found

    def _clear_staging(self) -> None:
        (self.root / "staging").mkdir(exist_ok=True)
        for path in (self.root / "staging").iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _is_sound(self, version: str) -> bool:
        """Whether the version is there; a damaged one goes where nobody needs it, and else BundleCorrupt."""
        target = self.root / "bundles" / version
        if not target.exists():
            return False
        try:
            open_bundle(target)
        except BundleCorrupt:
            current = self.current()
            if (current is not None and current.version == version) or not self._remove(version):
                raise
            return False
        return True

    def _remove(self, version: str) -> bool:
        """Take a version out of sight in one step, then away; False where a reader holds it."""
        folder, aside = self.root / "bundles" / version, self.root / "staging" / f"pruned-{version}"
        with no_readers(folder / MANIFEST) as alone:
            if not alone:
                return False
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            sync(folder.parent)
        shutil.rmtree(aside)
        return True


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
