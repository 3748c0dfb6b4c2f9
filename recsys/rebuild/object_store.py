"""A store of versions in S3, Google Cloud Storage or Azure, through `obstore`.

Owns upload, download, and the commit by a conditional put of CURRENT. Does not own staging and logs: they lie in a
local `Store`, the work folder, which is also where versions are loaded from.

No rename and no lock there: a version is complete when its manifest is, which comes last, and of two writers who saw
the same CURRENT the put of one is refused.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from recsys.bundle import MANIFEST, REMEDY, Manifest, open_bundle, parse_manifest, replace_file, sync
from recsys.errors import (
    BundleCorrupt,
    BundleError,
    BundleIncompatible,
    BundleLocked,
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
)
from recsys.rebuild.locks import writer_lock
from recsys.rebuild.remote import Conflict, Remote
from recsys.rebuild.store import Store

PULL_WAIT = 600.0  # seconds: whoever holds that lock reads one version and renames a folder
Tag = dict[str, str] | None


class ObjectStore:
    """The methods of `Store` over a bucket; make one with `create` or `open`."""

    def __init__(self, remote: Remote, local: Store) -> None:
        self.url, self.root = remote.url, local.root
        self._remote, self._local = remote, local
        self._base: tuple[Current | None, Tag] = None, None
        self._holder: int | None = None

    @classmethod
    def create(cls, url: str, work: Path, options: Mapping[str, str] | None = None) -> ObjectStore:
        """Make a store under a URL where there is none; one that is there is opened.

        Args:
            url: such as `s3://bucket/prefix`.
            work: local folder of staging, logs and copies.
            options: of `obstore.store.from_url`, such as `endpoint`; credentials also come from the environment.

        Raises:
            PublishRefused: something else lies there, or the service has no conditional put.
            InvalidConfig: `obstore` is not installed, or the URL is of no known kind.
            BundleError: the service cannot be reached.
        """
        store = cls(Remote(url, options), Store.create(work))
        if store._remote.read("FORMAT") is None:
            if store._remote.list(""):
                raise PublishRefused(f"{url} holds objects but no FORMAT and is no store; choose an empty prefix.")
            store._remote.probe()
            store._remote.put("FORMAT", f"{STORE_FORMAT}\n".encode())
        return cls.open(url, work, options)

    @classmethod
    def open(cls, url: str, work: Path, options: Mapping[str, str] | None = None) -> ObjectStore:
        """Open a store; nothing is written there. See `create`.

        Raises:
            BundleNotFound: there is none.
            BundleIncompatible: it has a format that this version does not know.
        """
        store = cls(Remote(url, options), Store.create(work))
        found = store._remote.read("FORMAT")
        if found is None:
            raise BundleNotFound(f"{url} is not a store; check the URL, or make one: recsys-rebuild init.")
        if found[0].strip() != STORE_FORMAT.encode():
            raise BundleIncompatible(
                f"{url} has format {found[0][:20]!r}, this version reads {STORE_FORMAT!r}; "
                "use the version of recsys-twostage that made it."
            )
        return store

    def current(self) -> Current | None:
        """What is live; None before the first promotion; BundleCorrupt where CURRENT is damaged."""
        return self._current()[0]

    def versions(self) -> list[str]:
        """The complete versions, ordered as in `Store.versions`."""
        return order(self._manifests(), self._promotions())

    def refused(self) -> list[str]:
        """See `Store.refused`."""
        return refused_among(self.versions(), lambda version: self._manifest(version)[0], self._promotions())

    def bundle(self, version: str) -> Path:
        """Local folder of a version, downloaded where it is not there."""
        return self.pull(version, self.root / "bundles")

    def content_hash(self, version: str) -> str:
        """sha256 over the paths and hashes of a version's files."""
        return content_hash_of(self._manifest(version)[0])

    def verify(self, version: str | None = None) -> Manifest:
        """Read every object of a version, by default the live one, and check it; raises as `Store.verify`."""
        current = self.current() if version is None else None
        if version is None and current is None:
            raise BundleNotFound(f"{self.url} has no live version yet; recsys-rebuild init makes the first.")
        version = str(version) if current is None else current.version
        manifest, raw = self._manifest(version)
        if current is not None and hashlib.sha256(raw).hexdigest() != current.manifest_sha256:
            raise BundleCorrupt(f"{self.url}: {version} has another manifest than CURRENT names; {REMEDY}.")
        self._check_names(version, manifest)
        for name, seal in manifest.files.items():
            self._remote.fetch(f"bundles/{version}/{name}", seal, None)
        return manifest

    @contextmanager
    def lock(self, run_id: str, *, wait: float = 0.0) -> Iterator[None]:
        """Remember CURRENT: whoever moves it before this ends makes the promotion within fail.

        On one machine it also keeps two runs with one work folder apart.

        Raises:
            BundleLocked: another run uses the work folder.
            PublishRefused: the service has no conditional put.
        """
        with self._local.lock(run_id, wait=wait):
            self._remote.probe()
            self._holder = threading.get_ident()
            try:
                self._base = self._current(tolerant=True)
                yield
            finally:
                self._holder, self._base = None, (None, None)

    @contextmanager
    def reading(self, version: str) -> Iterator[Path]:
        """Hold the local copy of a version, downloaded where it is not there; when this ends, old copies go."""
        self.bundle(version)
        try:
            with self._local.reading(version) as folder:
                yield folder
        finally:
            self._drop_old_copies()

    def stage(self, run_id: str) -> Path:
        """See `Store.stage`."""
        return self._local.stage(run_id)

    def published(self, run_id: str) -> str | None:
        """See `Store.published`; None where the upload was cut off, and `publish` goes on with it."""
        version = self._local.published(run_id)
        return version if version in self._manifests() else None

    def append_step(self, run_id: str, step: str, **facts: Any) -> None:
        """See `Store.append_step`; logs are local."""
        self._local.append_step(run_id, step, **facts)

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """See `Store.steps`."""
        return self._local.steps(run_id)

    def publish(self, run_id: str, metadata: dict[str, Any], *, as_of_stamp: datetime) -> str:
        """Seal what a run has staged and upload it, the manifest last; it is not live yet. See `Store.publish`."""
        with self._writing(run_id):
            version = self._local.publish(run_id, metadata, as_of_stamp=as_of_stamp)
            folder = self._local.bundle(version)
            if self._remote.read(f"bundles/{version}/{MANIFEST}") is None:
                for name in open_bundle(folder).files:
                    self._remote.put(f"bundles/{version}/{name}", folder / name)
                with suppress(Conflict):
                    self._remote.put_if(f"bundles/{version}/{MANIFEST}", (folder / MANIFEST).read_bytes(), None)
            # Somebody else may have published the same files under this name with other metadata: theirs is the one.
            # An equal manifest stays the same file, by which readers hold the version.
            raw = self._manifest(version)[1]
            if (folder / MANIFEST).read_bytes() != raw:
                replace_file(folder / MANIFEST, raw)
            open_bundle(folder)
            return version

    def promote(self, version: str, *, run_id: str, reason: str, promoted_at: datetime) -> Current:
        """Make a version live after checking every byte of it there; see `Store.promote`.

        Raises:
            BundleLocked: somebody else has moved CURRENT since this writer looked.
        """
        with self._writing(run_id):
            current, tag = self._base
            if current is None and tag is not None:
                self.current()  # It is damaged, and this says so.
            if current is not None and current.version == version:
                self.verify()
                return current
            check_contents(self.verify(version).files, version)
            return self._commit(current, tag, version, run_id, reason, promoted_at)

    def rollback(self, to: str | None = None, *, run_id: str, promoted_at: datetime) -> Current:
        """Make an older version live, by default the one before; see `Store.rollback`."""
        with self._writing(run_id):
            current, tag = self._base
            if to is None and current is None:
                self.current()
            to = to or (None if current is None else current.previous)
            if to is None:
                raise BundleNotFound(f"{self.url} has no earlier version to go back to; name one with --to.")
            check_was_good(to, self.verify(to), self._promotions())
            left = "a damaged CURRENT" if current is None else current.version
            return self._commit(current, tag, to, run_id, f"rollback from {left}", promoted_at)

    def prune(self, *, keep: int = 3, pinned: Iterable[str] = (), grace: timedelta = timedelta(hours=24)) -> list[str]:
        """Remove versions and unfinished uploads that are older than the live one by `grace`, and old local copies.

        Servers hold no lock here: `grace` is the time that they have for a download.
        """
        with self._writing("prune"):
            current, stamps = self.current(), self._stamps()
            pinned = list(pinned)
            if current is None:
                return []
            self._local.prune(keep=keep, pinned=[*pinned, current.version, current.previous or current.version])
            if current.version not in stamps:
                raise BundleNotFound(f"{self.url} has no object of {current.version}, which is live; {REPAIR}.")
            live_since = stamps[current.version]
            spared = {version for version, stamp in stamps.items() if stamp > live_since - grace}
            complete = self._manifests()
            victims = [v for v in superfluous(self.versions(), current, keep, pinned) if v not in spared]
            for version in [*victims, *(stamps.keys() - complete - spared)]:
                # The manifest first: from then on it is no version.
                names = sorted((meta["path"] for meta in self._remote.list(f"bundles/{version}")), key=_manifest_first)
                for name in names:
                    self._remote.delete(name)
            return victims

    def pull(self, version: str, folder: Path) -> Path:
        """Download a version into `folder/<version>`, verified before it appears there; an undamaged copy is kept.

        Raises:
            BundleNotFound: there is no such version.
            BundleCorrupt: an object is missing, extra or changed, or the manifest names a place outside.
        """
        manifest, raw = self._manifest(version)
        target = folder / version
        if _whole(target, raw):
            return target
        self._check_names(version, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        beside = self._local.stage(f"pull-{version}.{secrets.token_hex(4)}")
        try:
            for name, seal in manifest.files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                self._remote.fetch(f"bundles/{version}/{name}", seal, beside / name)
            (beside / MANIFEST).write_bytes(raw)
            open_bundle(beside)
            # Another process that pulls the same may be done: what it reads already must not be exchanged under it.
            with writer_lock(self.root / "PULL", beside.name, PULL_WAIT):
                if not _whole(target, raw):
                    shutil.rmtree(target, ignore_errors=True)
                    beside.rename(target)
                    sync(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return target

    @contextmanager
    def _writing(self, run_id: str) -> Iterator[None]:
        if self._holder == threading.get_ident():
            yield
        else:
            with self.lock(run_id):
                yield

    def _drop_old_copies(self) -> None:
        """Remove local copies that are neither live, nor the one before, nor held; later where a run is at work."""
        with suppress(BundleError, OSError):
            current = self.current()
            if current is not None:
                self._local.drop(superfluous(self._local.versions(), current, 0, ()))

    def _commit(self, base: Current | None, tag: Tag, version: str, run_id: str, reason: str, at: datetime) -> Current:
        raw = self._manifest(version)[1]
        new = following(base, max(self._promotions(), default=0), version, raw, check_run_id(run_id), reason, at)
        try:
            self._remote.put_if("CURRENT", new.to_bytes(), tag)
        except Conflict as error:
            # A put whose answer got lost is repeated by the client and then refused: it may be our own.
            if self._current(tolerant=True)[0] != new:
                raise BundleLocked(f"{self.url} was promoted by another writer meanwhile; start again.") from error
        self._remote.put(f"promotions/{new.seq:08}.json", new.to_bytes())
        self._base = self._current()
        return new

    def _current(self, *, tolerant: bool = False) -> tuple[Current | None, Tag]:
        """The record and what a conditional put needs to replace it."""
        found = self._remote.read("CURRENT")
        if found is None:
            return None, None
        raw, tag = found
        try:
            return Current.parse(raw, f"{self.url}/CURRENT"), tag
        except BundleCorrupt:
            if not tolerant:
                raise
            return None, tag

    def _manifest(self, version: str) -> tuple[Manifest, bytes]:
        found = self._remote.read(f"bundles/{check_version(version)}/{MANIFEST}")
        if found is None:
            there = ", ".join(self.versions()) or "none"
            raise BundleNotFound(f"{self.url} holds no version {version}; there are: {there}.")
        manifest = parse_manifest(found[0], f"{self.url}/bundles/{version}")
        if not version.endswith(content_hash_of(manifest)[:8]):
            raise BundleCorrupt(f"{self.url}/bundles/{version} holds another version's files; {REMEDY}.")
        return manifest, found[0]

    def _check_names(self, version: str, manifest: Manifest) -> None:
        prefix = f"bundles/{version}/"
        found = {meta["path"].removeprefix(prefix): meta["size"] for meta in self._remote.list(prefix)}
        found.pop(MANIFEST, None)
        for name in sorted(found.keys() | manifest.files.keys()):
            seal, size = manifest.files.get(name), found.get(name)
            if seal is None or size is None or seal.bytes != size:
                sealed = "nothing" if seal is None else f"{seal.bytes:,} bytes"
                there = "nothing" if size is None else f"{size:,} bytes"
                raise BundleCorrupt(f"{self.url}/{prefix}{name}: there is {there}, sealed is {sealed}; {REMEDY}.")

    def _manifests(self) -> set[str]:
        """Versions whose manifest is there."""
        parts = [meta["path"].split("/") for meta in self._remote.list("bundles")]
        return {path[1] for path in parts if path[2:] == [MANIFEST] and VERSION.fullmatch(path[1])}

    def _promotions(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for meta in self._remote.list("promotions"):
            stem = meta["path"].rsplit("/", 1)[-1].removesuffix(".json")
            record = self._remote.read(meta["path"])
            with suppress(BundleCorrupt):
                found[int(stem)] = "" if record is None else Current.parse(record[0], meta["path"]).version
        return found

    def _stamps(self) -> dict[str, datetime]:
        """When each version's newest object was written, by the service's clock."""
        stamps: dict[str, datetime] = {}
        for meta in self._remote.list("bundles"):
            version = meta["path"].split("/")[1]
            stamps[version] = max(meta["last_modified"], stamps.get(version, meta["last_modified"]))
        return stamps


def _whole(folder: Path, raw_manifest: bytes) -> bool:
    """Whether a local copy is there, of that manifest and undamaged."""
    try:
        open_bundle(folder)
        return (folder / MANIFEST).read_bytes() == raw_manifest
    except (BundleNotFound, BundleCorrupt, BundleIncompatible):
        return False


def _manifest_first(path: str) -> tuple[bool, str]:
    return not path.endswith(f"/{MANIFEST}"), path
