"""What ends a run whose tables and model are sound: gates, other writers, a disk that takes no more.

Each has its exit code, and what is live goes on serving.
"""

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.cli import exit_code
from recsys.errors import BundleLocked, PublishRefused
from recsys.rebuild import job
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, RebuildResult, run
from recsys.rebuild.store import Store
from recsys.synthetic import Synthetic

NOW = datetime(2026, 3, 1, tzinfo=UTC)
EASY = RebuildConfig(gates=GatesConfig(margin=1.0))
Look = Callable[[Store], None]


@pytest.fixture
def rebuild(store: Store, data: Synthetic) -> Callable[[], RebuildResult]:
    items = data.items.with_columns(title=pl.col("title") + " anew")
    return lambda: run(store, data.interactions, items, data.users, now=NOW, config=EASY)


def test_other_lists_once_reopened(
    store: Store, rebuild: Callable[[], RebuildResult], monkeypatch: pytest.MonkeyPatch, still_serves: Look
) -> None:
    before = store.current()
    assert before is not None
    with monkeypatch.context() as patched:
        patched.setattr(job, "lists_from", lambda _process, _folder, users, *_, **__: {str(u): [] for u in users})
        with pytest.raises(
            PublishRefused, match=r"built and kept but is not live\. gate reopen: 0\.0 is not 1\.0"
        ) as no:
            rebuild()
    assert exit_code(no.value) == 3
    assert store.current() == before
    (kept,) = set(store.versions()) - {before.version}
    (failed,) = [gate for gate in store.verify(kept).metadata["gates"] if not gate["passed"]]
    assert (failed["name"], failed["value"], failed["limit"]) == ("reopen", 0.0, "1.0")
    still_serves(store)
    with pytest.raises(PublishRefused, match=rf"version {kept} .* gate reopen"):  # judged once
        rebuild()


@pytest.mark.usefixtures("no_other_process")
def test_another_writer(store: Store, rebuild: Callable[[], RebuildResult], still_serves: Look) -> None:
    before = store.current()
    with Store.open(store.root).lock("another"), pytest.raises(BundleLocked, match="written by run another") as caught:
        rebuild()
    assert exit_code(caught.value) == 75
    assert store.current() == before
    still_serves(store)


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize("moment", ["lock", "promote"])
def test_a_rollback_meanwhile(
    store: Store,
    data: Synthetic,
    rebuild: Callable[[], RebuildResult],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    still_serves: Look,
) -> None:
    """Before the lock it counts and the run gives way; while the run holds the lock it is the one that waits."""
    rebuilt = rebuild().version
    live, others, original = store.current(), Store.open(store.root), getattr(Store, moment)
    codes: list[int] = []

    def meanwhile(self: Store, *arguments: Any, **named: Any) -> Any:
        if self is store and not codes:
            try:
                others.rollback(run_id="by-hand", promoted_at=NOW)
                codes.append(0)
            except BundleLocked as error:
                codes.append(exit_code(error))
        return original(self, *arguments, **named)

    monkeypatch.setattr(Store, moment, meanwhile)
    assert live is not None
    if moment == "lock":
        with pytest.raises(BundleLocked, match="got another live version") as caught:
            run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
        assert (codes, exit_code(caught.value)) == ([0], 75)
        after = store.current()
        assert after is not None
        assert (after.version, after.seq) == (live.previous, live.seq + 1)
    else:
        result = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
        after = store.current()
        assert after is not None
        assert codes == [75]
        assert (after.version, after.previous) == (result.version, rebuilt)
    still_serves(store)


@pytest.mark.usefixtures("no_other_process")
@pytest.mark.parametrize(("error", "code"), [(errno.ENOSPC, 73), (errno.EIO, 74), (errno.EROFS, 74)])
def test_a_disk_that_takes_no_more(
    store: Store,
    rebuild: Callable[[], RebuildResult],
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    code: int,
    still_serves: Look,
) -> None:
    before, fsync = store.current(), os.fsync
    flushed, failing = 0, 0

    def counted(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed == failing:
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    for step in (1, 5, 15):
        flushed, failing = 0, step
        with pytest.raises(OSError, match=os.strerror(error)) as caught:
            rebuild()
        assert exit_code(caught.value) == code
        assert store.current() == before
    still_serves(store)
    failing = 0
    assert rebuild().outcome == "promoted"
    still_serves(store)


@pytest.mark.usefixtures("no_other_process")
def test_nothing_can_be_written_into_a_bundle(
    store: Store, rebuild: Callable[[], RebuildResult], monkeypatch: pytest.MonkeyPatch, still_serves: Look
) -> None:
    def full(_state: object, _config: object, folder: Path) -> None:
        (folder / "half.npy").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    before = store.current()
    with monkeypatch.context() as patched:
        patched.setattr(job, "write_fitted", full)
        with pytest.raises(OSError, match="no space left") as caught:
            rebuild()
    assert exit_code(caught.value) == 73
    assert store.current() == before
    assert len(store.versions()) == 1
    still_serves(store)
    result = rebuild()
    assert result.counts["encoded"] == 0
    assert "half.npy" not in store.verify().files
