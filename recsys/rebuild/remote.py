"""Objects under one URL: the few requests that a store needs, with this package's errors.

Owns the only use of `obstore`, and the probe for conditional puts. Does not own what the objects mean.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from recsys.bundle import REMEDY, FileSeal
from recsys.errors import BundleCorrupt, BundleError, BundleNotFound, InvalidConfig, PublishRefused

CHUNK = 8 * 2**20
RETRY: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}


class Conflict(Exception):
    """A conditional put came too late; callers decide what that means."""


class Remote:
    """Objects under a URL.

    Args:
        url: such as `s3://bucket/prefix`.
        options: configuration of `obstore.store.from_url`; what is not in it comes from the environment.

    Raises:
        InvalidConfig: `obstore` is not installed, or the URL or an option is unknown to it.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise InvalidConfig(f"{url} needs obstore: pip install 'recsys-twostage[object-store]'") from error
        self.url, self._obstore = url.rstrip("/"), obstore
        try:
            self._store: Any = from_url(url, config=dict(options or {}), retry_config=RETRY)  # type: ignore[call-overload]
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise InvalidConfig(f"{url}: {_brief(error)}") from error

    def read(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Content of an object and its tag for `put`, or None."""
        with self._reaching():
            try:
                answer = self._obstore.get(self._store, path)
                meta = answer.meta
                tag = {name: str(value) for name in ("e_tag", "version") if (value := meta.get(name)) is not None}
                return bytes(answer.bytes()), tag
            except (self._obstore.exceptions.NotFoundError, FileNotFoundError):
                return None

    def put(self, path: str, data: bytes | Path) -> None:
        """Write an object, whatever is there."""
        with self._reaching():
            self._obstore.put(self._store, path, data)

    def put_if(self, path: str, data: bytes, tag: dict[str, str] | None) -> None:
        """Write an object if it still has the tag, or with None if there is none; else `Conflict`."""
        errors = self._obstore.exceptions
        with self._reaching():
            try:
                self._obstore.put(self._store, path, data, mode="create" if tag is None else tag)  # type: ignore[arg-type]
            except (errors.AlreadyExistsError, errors.PreconditionError, errors.NotFoundError) as error:
                raise Conflict(_brief(error)) from error

    def delete(self, path: str) -> None:
        """Remove an object; none is fine."""
        with self._reaching():
            try:
                self._obstore.delete(self._store, path)
            except (self._obstore.exceptions.NotFoundError, FileNotFoundError):
                return

    def list(self, prefix: str) -> list[dict[str, Any]]:
        """`path`, `size` and `last_modified` of what lies below."""
        with self._reaching():
            return [dict(meta) for part in self._obstore.list(self._store, prefix or None) for meta in part]

    def fetch(self, path: str, seal: FileSeal, target: Path | None) -> None:
        """Stream an object, into a file where one is given; BundleCorrupt where it is not the sealed one."""
        digest, length = hashlib.sha256(), 0
        with self._reaching(), Path(target or "/dev/null").open("wb") as stream:
            try:
                for chunk in self._obstore.get(self._store, path).stream(min_chunk_size=CHUNK):
                    length += len(chunk)
                    if length > seal.bytes:
                        break
                    digest.update(chunk)
                    stream.write(chunk)
            except self._obstore.exceptions.NotFoundError as error:
                raise BundleCorrupt(f"{self.url}/{path} is missing; {REMEDY}.") from error
        if length != seal.bytes or digest.hexdigest() != seal.sha256:
            raise BundleCorrupt(f"{self.url}/{path} has another sha256 or length than the manifest says; {REMEDY}.")

    def probe(self) -> None:
        """Refuse a service that does not keep to conditions: PublishRefused."""
        path = f"probe/{secrets.token_hex(8)}"
        refused = f"{self.url}: this service has no conditional put, so two writers could overwrite each other"
        try:
            self.put_if(path, b"1", None)
            first = self.read(path)
            if first is None or not first[1]:
                raise PublishRefused(f"{refused} (it gives no ETag).")
            self.put_if(path, b"2", first[1])
            for tag, what in ((None, "create"), (first[1], "update")):
                try:
                    self.put_if(path, b"3", tag)
                except Conflict:
                    continue
                raise PublishRefused(f"{refused} (a put with condition {what!r} went through).")
        except (NotImplementedError, Conflict) as error:
            raise PublishRefused(f"{refused} ({_brief(error)}).") from error
        finally:
            self.delete(path)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        errors = self._obstore.exceptions
        try:
            yield
        except errors.NotSupportedError as error:
            raise NotImplementedError(_brief(error)) from error
        except errors.NotFoundError as error:
            raise BundleNotFound(f"{self.url}: {_brief(error)}") from error
        except errors.BaseError as error:
            raise BundleError(f"{self.url} cannot be reached or refuses: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    return str(error).split("\n\nDebug source", 1)[0].strip()[:300]
