"""Which version of a store is live: the record in CURRENT, and what follows from the records of all promotions.

Owns names of versions and runs, the record's form and its damage, the order of versions and which of them must stay.
Does not own where a record lies: `store.py` has files, `object_store.py` objects.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from recsys.bundle import MANIFEST, Manifest, sealed_bytes, unsealed
from recsys.errors import BundleCorrupt, BundleError, BundleNotFound, InvalidConfig, PublishRefused

STORE_FORMAT = "1"
MAX_BYTES = 4096
MAX_REASON = 400
VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SUFFIXES = (".faiss", ".json", ".jsonl", ".md", ".model", ".npy", ".parquet", ".safetensors", ".txt")
"""Files that a stored bundle may hold: none of these formats runs code when it is read."""
REPAIR = "`recsys-rebuild rollback --to VERSION` writes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What CURRENT says.

    Attributes:
        seq: counts promotions and rollbacks from 1; the order of versions comes from it and from no clock.
        version: the live bundle.
        manifest_sha256: of the bytes of its manifest.
        previous: what was live before, None the first time.
        promoted_at: ISO 8601, UTC.
        run_id: who promoted it.
        reason: why.
    """

    seq: int
    version: str
    manifest_sha256: str
    previous: str | None
    promoted_at: str
    run_id: str
    reason: str

    def to_bytes(self) -> bytes:
        """The record, sealed."""
        return sealed_bytes(asdict(self))

    @classmethod
    def parse(cls, raw: bytes, place: object) -> Current:
        """Read a record; BundleCorrupt where a bit of it is not as written."""
        damaged = f"{place} is damaged; {REPAIR}."
        if len(raw) > MAX_BYTES:
            raise BundleCorrupt(f"{place} has {len(raw):,} bytes, a record has at most {MAX_BYTES:,}; {REPAIR}.")
        try:
            found = cls(**unsealed(raw))
        except (ValueError, TypeError) as error:
            raise BundleCorrupt(damaged) from error
        names = [found.version] if found.previous is None else [found.version, found.previous]
        if not all(isinstance(name, str) and VERSION.fullmatch(name) for name in names) or type(found.seq) is not int:
            raise BundleCorrupt(f"{place} says what no record can say; {REPAIR}.")
        return found


def following(
    base: Current | None, highest: int, version: str, raw_manifest: bytes, run_id: str, reason: str, at: datetime
) -> Current:
    """The record after `base`; `highest` is the greatest seq that any record of the store has."""
    return Current(
        seq=1 + max(highest, 0 if base is None else base.seq),
        version=version,
        manifest_sha256=hashlib.sha256(raw_manifest).hexdigest(),
        # Going to what is live already must not lose the way back from it.
        previous=None if base is None else base.previous if base.version == version else base.version,
        promoted_at=utc(at, "promoted_at").isoformat(),
        run_id=check_run_id(run_id),
        reason=reason[:MAX_REASON],
    )


def order(versions: Iterable[str], promotions: Mapping[int, str]) -> list[str]:
    """Versions by their last promotion; one that never was live follows the promoted one of the nearest older stamp."""
    last = {version: seq for seq, version in sorted(promotions.items())}

    def place(version: str) -> tuple[int, int, str]:
        if version in last:
            return last[version], 0, version
        return max((seq for promoted, seq in last.items() if promoted < version), default=0), 1, version

    return sorted(versions, key=place)


def superfluous(ordered: Sequence[str], current: Current | None, keep: int, pinned: Iterable[str]) -> list[str]:
    """What may go: all but the newest `keep`, the pinned, the live one and the one before it."""
    if keep < 0:
        raise InvalidConfig(f"keep is {keep}; it must be 0 or more")
    kept = {*pinned, *(ordered[-keep:] if keep else ())}
    if current is not None:
        kept |= {current.version, current.previous or current.version}
    return [version for version in ordered if version not in kept]


def was_refused(version: str, manifest: Manifest, promotions: Mapping[int, str]) -> bool:
    """Whether a gate kept a version from being live, and it never was."""
    return version not in promotions.values() and not all(gate["passed"] for gate in manifest.metadata.get("gates", ()))


def refused_among(
    versions: Iterable[str], manifest_of: Callable[[str], Manifest], promotions: Mapping[int, str]
) -> list[str]:
    """The versions that their gates kept from being live, as far as their manifests can be read."""
    found = []
    for version in versions:
        with suppress(BundleError, OSError):
            found += [version] if was_refused(version, manifest_of(version), promotions) else []
    return found


def check_was_good(version: str, manifest: Manifest, promotions: Mapping[int, str]) -> None:
    """PublishRefused where a gate kept the version from being live, and it never was."""
    if was_refused(version, manifest, promotions):
        failed = ", ".join(str(gate["name"]) for gate in manifest.metadata["gates"] if not gate["passed"])
        raise PublishRefused(
            f"version {version} never was live: its gates refused it ({failed}). Choose another, or run again with "
            "other limits in [gates]."
        )


def content_hash_of(manifest: Manifest) -> str:
    """sha256 (64 hex digits) over the paths and hashes of the files: no metadata, no time."""
    digest = hashlib.sha256()
    for name in sorted(manifest.files):
        digest.update(f"{name}\0{manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def version_of(manifest: Manifest, stamp: datetime) -> str:
    """`<UTC stamp>-<8 hex digits of the content hash>`."""
    return f"{utc(stamp, 'as_of_stamp'):%Y%m%dT%H%M%SZ}-{content_hash_of(manifest)[:8]}"


def check_contents(names: Iterable[str], place: object) -> None:
    """Nothing that could run code when it is read, and something at all; else PublishRefused."""
    files = [name for name in names if name != MANIFEST]
    if not files:
        raise PublishRefused(f"{place} holds no file; fill it before it is published.")
    for name in files:
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            raise PublishRefused(f"{place} holds {name}; a stored bundle holds {', '.join(SUFFIXES)} files only.")


def check_version(version: str) -> str:
    """The name itself; BundleNotFound where no version can be called so."""
    if not VERSION.fullmatch(version):
        raise BundleNotFound(f"{version!r} is not the name of a version, such as 20260131T020000Z-0123abcd.")
    return version


def check_run_id(run_id: str) -> str:
    """The id itself; InvalidConfig where it cannot name a file."""
    if not RUN_ID.fullmatch(run_id):
        raise InvalidConfig(
            f"run id {run_id!r}: use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return run_id


def utc(moment: datetime, name: str) -> datetime:
    """The same moment in UTC; InvalidConfig where it has no time zone."""
    if moment.tzinfo is None:
        raise InvalidConfig(f"{name} {moment} has no time zone; pass an aware datetime, such as datetime.now(UTC)")
    return moment.astimezone(UTC)
