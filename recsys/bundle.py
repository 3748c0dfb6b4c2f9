"""A bundle: a folder that is sealed when it is written and verified before anything in it is read.

Owns the manifest, the seal and the swap of one folder. Does not own what the files mean, which bundle is the
current one, or who may write: the caller keeps two writers off one target. It finds damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

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
        _seal(staging, metadata)
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
    for name in sorted(manifest.files.keys() | found.keys()):
        fault = _fault(found.get(name), manifest.files.get(name))
        if fault:
            raise BundleCorrupt(f"{folder}: {name} {fault}; {REMEDY}.")
    return manifest


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


def _seal(staging: Path, metadata: dict[str, object]) -> None:
    """Flush every file and folder to disk; the manifest last."""
    files = {path.relative_to(staging).as_posix(): _seal_file(staging, path) for path in _entries(staging)}
    if MANIFEST in files:
        raise PublishRefused(f"{MANIFEST} is written by the seal; name the file of the bundle otherwise.")
    body = {
        "format": FORMAT,
        "metadata": metadata,
        "versions": library_versions(),
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    (staging / MANIFEST).write_bytes(_render(body))
    _sync(staging / MANIFEST)
    for root, _, _ in os.walk(staging, topdown=False):
        _sync(Path(root))


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
    _sync(folder.parent)
    # The new bundle is in place: an old one that cannot be removed costs space and is no reason to fail.
    shutil.rmtree(aside, ignore_errors=True)


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder but folders; links are not followed."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
        yield from (path for name in folders if (path := Path(root, name)).is_symlink())


def _seal_file(staging: Path, path: Path) -> FileSeal:
    if not _is_regular(path):
        raise PublishRefused(f"{path.relative_to(staging)} is not a regular file; a bundle holds nothing else.")
    _sync(path)
    return FileSeal(bytes=path.stat().st_size, sha256=_sha256(path))


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
        return None if _sha256(path) == sealed.sha256 else "has another sha256 than the manifest says"
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
    damaged = f"{path} is damaged; {REMEDY}."
    if not _is_regular(path):
        raise BundleCorrupt(f"{path} is not a regular file; {REMEDY}.")
    try:
        raw = path.read_bytes()
        body = json.loads(raw)
        found = body["format"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise BundleCorrupt(damaged) from error
    if found != FORMAT:
        raise BundleIncompatible(
            f"{folder} has format {found!r}, this version reads {FORMAT!r}; "
            "use the version of recsys-twostage that wrote it, or build the bundle again."
        )
    body.pop("seal", None)
    if raw != _render(body):
        raise BundleCorrupt(damaged)
    return _manifest(folder, body)


def _manifest(folder: Path, body: dict[str, Any]) -> Manifest:
    try:
        files = {name: FileSeal(**entry) for name, entry in body.pop("files").items()}
        manifest = Manifest(files=files, **body)
    except (LookupError, TypeError, AttributeError) as error:
        raise BundleCorrupt(f"{folder / MANIFEST} lacks an entry or has an unknown one; {REMEDY}.") from error
    for name in files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or str(parts) != name:
            raise BundleCorrupt(f"{folder / MANIFEST} names {name!r}, not a path in the bundle; {REMEDY}.")
    return manifest


def _render(body: dict[str, Any]) -> bytes:
    """The manifest's bytes: one rendering for one content, closed by the sha256 of all that stands before."""
    content = json.dumps(body, indent=1, allow_nan=False)
    seal = hashlib.sha256(content.encode()).hexdigest()
    return (json.dumps({**body, "seal": seal}, indent=1, allow_nan=False) + "\n").encode()


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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
