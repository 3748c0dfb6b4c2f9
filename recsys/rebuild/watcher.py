"""Serving from a store: the live version in memory, exchanged for the next one between two requests.

Owns when a version is loaded, checked, taken into service and let go. Does not own what makes a version live (the
store), nor the requests: whoever serves asks `serving()` once a request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recsys.bundle import MANIFEST, sha256_of
from recsys.errors import BundleCorrupt, BundleNotFound, RecsysError
from recsys.rebuild.current import Current, utc

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from recsys.recommender import Recommender

LONGEST_PAUSE = 300.0
"""Seconds at most between two tries to load the same version."""

logger = logging.getLogger(__name__)


class Versions(Protocol):
    """What is needed of a store: `Store` and `ObjectStore` both have it."""

    def current(self) -> Current | None:
        """What is live."""

    def reading(self, version: str) -> AbstractContextManager[Path]:
        """Hold a version and give its folder."""


@dataclass(kw_only=True)
class _Served:
    """A loaded version, the requests that use it, and the hold on its folder."""

    current: Current
    recommender: Recommender
    hold: ExitStack
    requests: int = 0
    retired: bool = False


@dataclass(kw_only=True)
class _Refusals:
    total: int = 0
    error: str | None = None
    seq: int | None = None
    tries: int = 0
    next_try: datetime = field(default_factory=lambda: datetime.min.replace(tzinfo=UTC))


class BundleWatcher:
    """The live recommender of a store, whatever happens there.

    Example:
        >>> watcher = BundleWatcher(Store.open(Path("store")))
        >>> watcher.start(interval=2.0)
        >>> with watcher.serving() as recommender:
        ...     lists = recommender.recommend(["ada"])
    """

    def __init__(
        self,
        store: Versions,
        *,
        device: str = "auto",
        on_refused: Callable[[Exception], None] | None = None,
        prepare: Callable[[Recommender], None] = lambda recommender: None,
    ) -> None:
        """Load the live version.

        Args:
            store: where versions come from.
            device: see `Recommender.load`.
            on_refused: told why a version is not taken into service.
            prepare: is handed each version before it serves, for what was changed since its tables were written, such
                as deleted people; a version with which it fails is not taken into service.

        Raises:
            BundleNotFound, BundleCorrupt, BundleIncompatible: there is nothing to serve yet.
        """
        self._store, self._device, self._on_refused, self._prepare = store, device, on_refused, prepare
        self._guard, self._polling = threading.Lock(), threading.Lock()
        self._refusals, self._swaps = _Refusals(), 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        current = store.current()
        if current is None:
            raise BundleNotFound("the store has no live version yet; recsys-rebuild init makes the first")
        self._served = self._load(current)
        self._seq = current.seq

    @property
    def recommender(self) -> Recommender:
        """The version in service. Several calls that belong together use `serving` instead."""
        return self._served.recommender

    @contextmanager
    def serving(self) -> Iterator[Recommender]:
        """One version from beginning to end of a request; it stays whole on disk as long."""
        with self._guard:
            served = self._served
            served.requests += 1
        try:
            yield served.recommender
        finally:
            with self._guard:
                served.requests -= 1
            self._let_go(served)

    def poll(self, now: datetime) -> bool:
        """Take the live version into service where it is another one; whatever is wrong with it, the old one stays.

        Args:
            now: aware; a version that was refused is tried again after a pause that doubles up to five minutes.

        Returns:
            Whether another version is served now.
        """
        with self._polling:
            try:
                current = self._store.current()
                if current is None:
                    raise BundleNotFound("CURRENT is gone; recsys-rebuild rollback --to VERSION writes it anew")
                if not self._is_news(current, utc(now, "now")):
                    return False
                return self._take(current)
            # Whatever a loader raises on a version that it cannot read, requests go on with the old one.
            except Exception as error:
                self._refuse(error, now)
                return False

    def metrics(self, now: datetime) -> dict[str, Any]:
        """What is served and how it goes.

        Args:
            now: aware.

        Returns:
            `version`, `seq`, `promoted_at`, `age_seconds` since then, `swaps`, `refused` (tries, not versions), and
            `last_error`, None once a version has been taken or the live one is served again.
        """
        with self._guard:
            served = self._served.current
        age = utc(now, "now") - datetime.fromisoformat(served.promoted_at)
        return {
            "version": served.version,
            "seq": self._seq,
            "promoted_at": served.promoted_at,
            "age_seconds": age.total_seconds(),
            "swaps": self._swaps,
            "refused": self._refusals.total,
            "last_error": self._refusals.error,
        }

    def start(self, interval: float = 2.0, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Poll every `interval` seconds in a thread until `stop`."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, args=(interval, clock), name="watcher", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; what is served stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """End the thread and let go of the version as soon as no request uses it."""
        self.stop()
        self._served.retired = True
        self._let_go(self._served)

    def _watch(self, interval: float, clock: Callable[[], datetime]) -> None:
        while not self._stop.wait(interval):
            self.poll(clock())

    def _is_news(self, current: Current, now: datetime) -> bool:
        if current.seq < self._seq:
            raise BundleCorrupt(f"CURRENT went back from seq {self._seq} to {current.seq}; a rollback counts on.")
        if current.version == self._served.current.version:
            self._seq, self._refusals.error = current.seq, None
            return False
        return current.seq != self._refusals.seq or now >= self._refusals.next_try

    def _take(self, current: Current) -> bool:
        self._refusals.seq, self._refusals.tries = current.seq, self._refusals.tries + 1
        new = self._load(current)
        with self._guard:
            old, self._served = self._served, new
        old.retired = True
        self._let_go(old)
        self._seq, self._swaps = current.seq, self._swaps + 1
        self._refusals = _Refusals(total=self._refusals.total)
        return True

    def _load(self, current: Current) -> _Served:
        """Hold, verify, load, ask it for a list, and hand it to `prepare`."""
        from recsys.rebuild.features import check_answers
        from recsys.recommender import Recommender

        with ExitStack() as stack:
            folder = stack.enter_context(self._store.reading(current.version))
            if sha256_of(folder / MANIFEST) != current.manifest_sha256:
                raise BundleCorrupt(f"{folder} has another manifest than CURRENT names; keep what is served.")
            recommender = Recommender.load(folder, device=self._device)
            check_answers(recommender, f"version {current.version}")
            self._prepare(recommender)
            return _Served(current=current, recommender=recommender, hold=stack.pop_all())

    def _refuse(self, error: Exception, now: datetime) -> None:
        refusals = self._refusals
        refusals.total += 1
        refusals.next_try = utc(now, "now") + timedelta(seconds=min(LONGEST_PAUSE, 2.0 ** min(refusals.tries, 20)))
        message = f"{type(error).__name__}: {error}"
        if message != refusals.error:
            # What has no name of its own may be a bug, and is told with the place where it happened.
            named = isinstance(error, (RecsysError, OSError))
            logger.log(
                logging.WARNING if named else logging.ERROR,
                "kept %s: %s", self._served.current.version, message, exc_info=None if named else error,
            )  # fmt: skip
        refusals.error = message
        if self._on_refused is not None:
            try:
                self._on_refused(error)
            # Polling goes on whatever the one who is told does.
            except Exception:
                logger.exception("on_refused failed")

    def _let_go(self, served: _Served) -> None:
        with self._guard:
            unused = served.retired and served.requests == 0
        if unused:
            served.hold.close()
