"""A bundle: a folder that is sealed when it is written and verified before anything in it is read.

Owns the manifest, the seal and the swap of one folder, and how a single file is sealed and replaced. Does not own what
the files mean, which bundle is the current one (`recsys/rebuild/store.py`), or who may write: the caller keeps two
writers off one target. It finds damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from recsys.errors import BundleCorrupt, BundleIncompatible, BundleNotFound, PublishRefused

FORMAT = "1"
MANIFEST = "MANIFEST.json"
LIBRARIES = (
    "recsys-twostage",
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "faiss-gpu",
    "lightgbm",
    "polars",
    "numpy",
)
MAX_FILES = 100_000
READERS = 4  # files hashed or flushed at once, for which Python lets other threads go on
In = TypeVar("In")
Out = TypeVar("Out")
REMEDY = "restore the bundle from a copy or build it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSeal:
    """Length in bytes and sha256 (64 hex digits) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What ``MANIFEST.json`` says.

    Attributes:
        format: Layout of the bundle; this version reads "1".
        metadata: What the writer recorded.
        versions: Library versions at the time of writing, by distribution name.
        files: Every file but the manifest, by its path in the bundle (relative, forward slashes).
    """

    format: str
    metadata: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, FileSeal]


def write_bundle(folder: Path, write: Callable[[Path], dict[str, object]]) -> None:
    """Write a bundle beside its place, seal it, and swap it in.

    Whatever goes wrong before the swap leaves ``folder`` as it was. An old bundle is moved to
    ``.<name>.replaced-<8 hex>`` for the moment of the swap and then removed; a machine that dies in that
    moment leaves it there, complete. A killed process leaves ``.<name>.staging-<8 hex>``, which is garbage.

    Args:
        folder: Where the bundle shall be. Its parent is made where absent.
        write: Fills the empty folder it is given and returns the metadata for the manifest (JSON values).

    Raises:
        PublishRefused: ``folder`` is neither absent, empty nor a bundle, or ``write`` left something that
            cannot be sealed.
        OSError: A file cannot be written.
    """
    folder = folder.absolute()
    refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(folder, "staging")
    try:
        staging.mkdir()
        metadata = write(staging)
        seal_bundle(staging, metadata)
        refuse_foreign(folder)
        _swap(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def open_bundle(folder: Path) -> Manifest:
    """Verify a bundle: the length and the sha256 of every file, and that there is no other file.

    Raises:
        BundleNotFound: There is no manifest.
        BundleIncompatible: The manifest is of another format.
        BundleCorrupt: A file is missing, extra, changed or not a regular file, or the manifest is damaged.
    """
    folder = folder.absolute()
    _require_manifest(folder)
    manifest = _parse(folder)
    found = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    found.pop(MANIFEST, None)
    names = sorted(manifest.files.keys() | found.keys())
    for name, fault in _each(lambda name: _fault(found.get(name), manifest.files.get(name)), names):
        if fault:
            raise BundleCorrupt(f"{folder}: {name} {fault}; {REMEDY}.")
    return manifest


def seal_bundle(folder: Path, metadata: dict[str, Any]) -> Manifest:
    """Write the manifest of a folder in which everything else is written, and flush all of it to disk, that last.

    Args:
        folder: Holds regular files and folders, no ``MANIFEST.json``.
        metadata: For the manifest (JSON values).

    Raises:
        PublishRefused: There is something that cannot be sealed.
        OSError: A file cannot be read or written.
    """
    files = {
        path.relative_to(folder).as_posix(): seal for path, seal in _each(partial(_seal_file, folder), _entries(folder))
    }
    if MANIFEST in files:
        raise PublishRefused(f"{MANIFEST} is written by the seal; name the file of the bundle otherwise.")
    if fault := _collection_fault(files):
        raise PublishRefused(f"{folder} {fault}; a bundle must fit on every file system.")
    files = {name: files[name] for name in sorted(files)}
    manifest = Manifest(format=FORMAT, metadata=metadata, versions=library_versions(), files=files)
    (folder / MANIFEST).write_bytes(sealed_bytes(asdict(manifest)))
    sync(folder / MANIFEST)
    for root, _, _ in os.walk(folder, topdown=False):
        sync(Path(root))
    return manifest


def parse_manifest(raw: bytes, folder: Path | str) -> Manifest:
    """Check a manifest's bytes against their own seal, and that every name is one in the bundle.

    Args:
        raw: Content of ``MANIFEST.json``.
        folder: The bundle's place, for the messages.

    Raises:
        BundleIncompatible: The manifest is of another format.
        BundleCorrupt: It is damaged, or says something that a manifest cannot say.
    """
    damaged = f"{folder}/{MANIFEST} is damaged; {REMEDY}."
    try:
        found = json.loads(raw)["format"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise BundleCorrupt(damaged) from error
    if found != FORMAT:
        raise BundleIncompatible(
            f"{folder} has format {found!r}, this version reads {FORMAT!r}; "
            "use the version of recsys-twostage that wrote it, or build the bundle again."
        )
    try:
        body = unsealed(raw)
    except ValueError as error:
        raise BundleCorrupt(damaged) from error
    return _manifest(folder, body)


def sealed_bytes(body: dict[str, Any]) -> bytes:
    """JSON in one rendering for one content, closed by the sha256 of all that stands before."""
    content = json.dumps(body, indent=1, allow_nan=False)
    seal = hashlib.sha256(content.encode()).hexdigest()
    return (json.dumps({**body, "seal": seal}, indent=1, allow_nan=False) + "\n").encode()


def unsealed(raw: bytes) -> dict[str, Any]:
    """What `sealed_bytes` was given; ValueError where a single bit differs from what it returned."""
    try:
        body = json.loads(raw)
        body.pop("seal")
        whole = raw == sealed_bytes(body)
    except (RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("not a sealed object") from error
    if not whole:
        raise ValueError("the seal does not fit the content")
    return dict(body)


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in its place whole and durably; a reader meets the old content or the new. One writer at a time."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def refuse_foreign(folder: Path) -> None:
    """Check a target before long work: it must be absent, an empty folder or an older bundle.

    Raises:
        PublishRefused: it is something else, which nobody would want replaced.
    """
    if not os.path.lexists(folder):
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise PublishRefused(f"{folder} holds the current folder, which must not be replaced; choose another place.")
    if folder.is_symlink() or not folder.is_dir():
        raise PublishRefused(f"{folder} is a link or a file, not a folder; choose another place or remove it.")
    if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise PublishRefused(
            f"{folder} holds files but no {MANIFEST}, so it is not a bundle and is not replaced; "
            "choose another place or empty it."
        )


def _beside(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}-{secrets.token_hex(4)}")


def _swap(staging: Path, folder: Path) -> None:
    aside = _beside(folder, "replaced")
    try:
        if folder.exists():
            folder.rename(aside)
        staging.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    sync(folder.parent)
    # The new bundle is in place: an old one that cannot be removed costs space and is no reason to fail.
    shutil.rmtree(aside, ignore_errors=True)


def _each(ask: Callable[[In], Out], about: Iterable[In]) -> list[tuple[In, Out]]:
    """Questions and answers in their order, `READERS` at a time."""
    asked = list(about)
    with ThreadPoolExecutor(READERS) as pool:
        return list(zip(asked, pool.map(ask, asked), strict=True))


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders; links are not followed."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
        yield from (path for name in folders if (path := Path(root, name)).is_symlink())


def _seal_file(staging: Path, path: Path) -> FileSeal:
    if not _is_regular(path):
        raise PublishRefused(f"{path.relative_to(staging)} is not a regular file; a bundle holds nothing else.")
    sync(path)
    return FileSeal(bytes=path.stat().st_size, sha256=sha256_of(path))


def _fault(path: Path | None, sealed: FileSeal | None) -> str | None:
    """What is wrong with one file, or None."""
    if path is None:
        return "is missing"
    if sealed is None:
        return "is not in the manifest"
    if not _is_regular(path):
        return "is not a regular file"
    try:
        size = path.stat().st_size
        if size != sealed.bytes:
            return f"has {size:,} bytes, the manifest says {sealed.bytes:,}"
        return None if sha256_of(path) == sealed.sha256 else "has another sha256 than the manifest says"
    except OSError as error:
        return f"cannot be read ({error})"


def _require_manifest(folder: Path) -> None:
    if os.path.lexists(folder / MANIFEST):
        return
    prefix = f".{folder.name}.replaced-"
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    asides = [path for path in siblings if path.name.startswith(prefix)]
    hint = f" An interrupted swap left {asides[0]}; rename it to {folder.name}." if asides else ""
    raise BundleNotFound(f"{folder} holds no {MANIFEST}, so there is no bundle; check the path.{hint}")


def _parse(folder: Path) -> Manifest:
    """Read the manifest and check it against its own seal."""
    path = folder / MANIFEST
    if not _is_regular(path):
        raise BundleCorrupt(f"{path} is not a regular file; {REMEDY}.")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleCorrupt(f"{path} cannot be read ({error}); {REMEDY}.") from error
    return parse_manifest(raw, folder)


def _manifest(folder: Path | str, body: dict[str, Any]) -> Manifest:
    place = f"{folder}/{MANIFEST}"
    try:
        files = {name: FileSeal(**entry) for name, entry in body.pop("files").items()}
        manifest = Manifest(files=files, **body)
    except (LookupError, TypeError, AttributeError) as error:
        raise BundleCorrupt(f"{place} lacks an entry or has an unknown one; {REMEDY}.") from error
    for name in files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or str(parts) != name:
            raise BundleCorrupt(f"{place} names {name!r}, not a path in the bundle; {REMEDY}.")
    if fault := _collection_fault(files):
        raise BundleCorrupt(f"{place} {fault}; {REMEDY}.")
    return manifest


def _collection_fault(names: Collection[str]) -> str | None:
    """What keeps these names from lying in one folder anywhere, or None."""
    if len(names) > MAX_FILES:
        return f"has {len(names):,} files, at most {MAX_FILES:,} can be"
    folded: dict[str, str] = {}
    for name in sorted(names):
        twin = folded.setdefault(name.casefold(), name)
        if twin != name:
            return f"has {twin!r} and {name!r}, which differ in case alone"
    return None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed ones among `LIBRARIES`, by distribution name."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
