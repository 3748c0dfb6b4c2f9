"""A server's view: versions exchanged under requests that never stop."""

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recsys.bundle import MANIFEST
from recsys.config import config_from_dict
from recsys.errors import BundleCorrupt, BundleNotFound
from recsys.rebuild.store import Store
from recsys.rebuild.watcher import BundleWatcher
from recsys.recommender import Recommender
from recsys.synthetic import generate

SOAK = os.environ.get("RECSYS_SOAK") == "1"
SWAPS = 100 if SOAK else 8
START = datetime(2026, 1, 1, tzinfo=UTC)
USERS = ["u00001", "u00002", "u00003"]


@pytest.fixture(scope="module")
def saved(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two recommenders over two catalogues of one set of users."""
    folders = []
    for seed in (0, 1):
        config = config_from_dict(
            {
                "encoder": {"model": tiny_bert},
                "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
                "interest": {"max_groups": 8, "group_size": 4},
                "n_interest": 2,
                "probabilities": False,
                "device": "cpu",
                "progress": False,
                "seed": seed,
            }
        )
        data = generate(n_users=40, n_items=60, n_topics=4, events_per_user=10, n_cold_items=2, seed=seed)
        folders.append(tmp_path_factory.mktemp("saved") / "m")
        Recommender(config).fit(data.interactions, data.items, data.users).save(folders[-1])
    return folders[0], folders[1]


def go_live(store: Store, folder: Path, number: int) -> str:
    run_id = f"run-{number}"
    staging = store.stage(run_id)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            target = staging / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    at = START + timedelta(days=number)
    version = store.publish(run_id, {}, as_of_stamp=at)
    store.promote(version, run_id=run_id, reason="test", promoted_at=at)
    return version


def lists(recommender: Recommender) -> list[tuple[object, ...]]:
    return list(recommender.recommend(USERS, 5).select("user_id", "item_id", "rank").rows())


@pytest.fixture
def store(tmp_path: Path, saved: tuple[Path, Path]) -> Store:
    store = Store.create(tmp_path / "store")
    go_live(store, saved[0], 0)
    return store


@pytest.fixture
def watcher(store: Store) -> Iterator[BundleWatcher]:
    watcher = BundleWatcher(store, device="cpu")
    yield watcher
    watcher.close()


def test_picks_up_what_is_live(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    first = watcher.recommender
    assert not watcher.poll(START)
    version = go_live(store, saved[1], 1)
    assert watcher.poll(START + timedelta(days=2))
    assert watcher.recommender is not first
    assert lists(watcher.recommender) == lists(Recommender.load(store.bundle(version))) != lists(first)
    assert watcher.metrics(START + timedelta(days=2)) == {
        "version": version, "seq": 2, "promoted_at": "2026-01-02T00:00:00+00:00", "age_seconds": 86400.0,
        "swaps": 1, "refused": 0, "last_error": None,
    }  # fmt: skip
    store.rollback(run_id="x", promoted_at=START)
    assert watcher.poll(START)
    assert watcher.metrics(START)["seq"] == 3


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match="has no live version yet; recsys-rebuild init"):
        BundleWatcher(Store.create(tmp_path))


def test_damaged_version_is_not_taken(
    store: Store, watcher: BundleWatcher, saved: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Exception] = []
    watcher._on_refused = told.append
    before = lists(watcher.recommender)
    version = go_live(store, saved[1], 1)
    path = store.bundle(version) / "item_vectors.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert not watcher.poll(START)
    assert "item_vectors.npy has another sha256" in caplog.text
    assert isinstance(told[0], BundleCorrupt)
    metrics = watcher.metrics(START)
    assert metrics["refused"] == 1
    assert metrics["last_error"].startswith("BundleCorrupt: ")
    assert metrics["version"] != version
    assert lists(watcher.recommender) == before
    path.write_bytes(good)
    assert not watcher.poll(START + timedelta(seconds=1)), "a refused version is left alone for a moment"
    assert watcher.poll(START + timedelta(seconds=2))
    assert watcher.metrics(START)["last_error"] is None


def test_version_that_opens_but_does_not_fit_together(
    store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]
) -> None:
    """F10: sealed as it should be, with a part that is not what the loader expects."""
    mixed = store.root.parent / "mixed"
    Recommender.load(saved[0]).save(mixed)
    (mixed / "state.json").write_text("{}")
    before = lists(watcher.recommender)
    go_live(store, mixed, 1)
    assert not watcher.poll(START)
    assert watcher.metrics(START)["refused"] == 1
    assert lists(watcher.recommender) == before


def test_what_has_no_name_is_told_with_its_place(
    store: Store,
    watcher: BundleWatcher,
    saved: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug in a loader or in who is told: the old version serves, polling goes on, and the log has the traceback."""

    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    before = lists(watcher.recommender)
    version = go_live(store, saved[1], 1)
    watcher._on_refused = bug
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Recommender, "load", bug)
        assert not watcher.poll(START)
    assert lists(watcher.recommender) == before
    metrics = watcher.metrics(START)
    assert (metrics["refused"], metrics["last_error"]) == (1, "ZeroDivisionError: a bug")
    kept, failed = caplog.records
    assert kept.levelno == failed.levelno == logging.ERROR
    assert kept.exc_info is not None
    assert "kept 20260101T000000Z" in kept.message
    assert "on_refused failed" in failed.message
    assert watcher.poll(START + timedelta(seconds=2))
    assert watcher.metrics(START)["version"] == version


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "BundleCorrupt: .*CURRENT is damaged"), (None, "BundleNotFound: CURRENT is gone")]
)
def test_current_in_ruins(store: Store, watcher: BundleWatcher, content: bytes | None, said: str) -> None:
    """F6."""
    before, path = lists(watcher.recommender), store.root / "CURRENT"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert not watcher.poll(START)
    error = watcher.metrics(START)["last_error"]
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(error)
    assert lists(watcher.recommender) == before


def test_current_from_a_backup(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    old = (store.root / "CURRENT").read_bytes()
    version = go_live(store, saved[1], 1)
    watcher.poll(START)
    (store.root / "CURRENT").write_bytes(old)
    assert not watcher.poll(START)
    assert "went back from seq 2 to 1" in watcher.metrics(START)["last_error"]
    assert watcher.metrics(START)["version"] == version


def test_manifest_of_somebody_else(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    version = go_live(store, saved[1], 1)
    with (store.bundle(version) / MANIFEST).open("ab") as stream:
        stream.write(b"\n")
    assert not watcher.poll(START)
    assert "has another manifest than CURRENT names" in watcher.metrics(START)["last_error"]


def test_a_request_keeps_its_version(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    first = store.versions()[0]
    with watcher.serving() as recommender:
        before = lists(recommender)
        go_live(store, saved[1], 1)
        go_live(store, saved[0], 2)
        assert watcher.poll(START)
        assert store.prune(keep=0) == []
        assert lists(recommender) == before
    assert store.prune(keep=0) == [first]


def test_what_changed_since_is_told_to_each_version_before_it_serves(store: Store, saved: tuple[Path, Path]) -> None:
    told: list[list[str]] = []
    gone: list[str] = []

    def forget(recommender: Recommender) -> None:
        if gone == ["fail"]:
            raise RuntimeError("the list of deletions cannot be read")
        recommender.delete_users(gone)
        told.append(recommender.users.to_list())

    watcher = BundleWatcher(store, device="cpu", prepare=forget)
    gone.append(told[0][0])
    go_live(store, saved[1], 1)
    assert watcher.poll(START)
    with watcher.serving() as recommender:
        assert gone[0] not in recommender.users.to_list()
    gone[:] = ["fail"]
    go_live(store, saved[0], 2)
    assert not watcher.poll(START)
    assert "the list of deletions cannot be read" in watcher.metrics(START)["last_error"]
    watcher.close()


def test_thread(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    watcher.start(interval=0.01)
    watcher.start(interval=0.01)
    version = go_live(store, saved[1], 1)
    deadline = time.monotonic() + 20
    while watcher.metrics(START)["version"] != version and time.monotonic() < deadline:
        time.sleep(0.01)
    watcher.stop()
    assert watcher.metrics(START)["version"] == version
    assert threading.active_count() == 1 or "watcher" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.timeout(1200)
def test_swaps_under_requests(store: Store, watcher: BundleWatcher, saved: tuple[Path, Path]) -> None:
    """F9: no failed answer, none mixed from two versions; of all versions two are in memory, and no file stays open."""
    truth = [lists(Recommender.load(folder, device="cpu")) for folder in saved]
    assert truth[0] != truth[1]
    stop, answers, wrong = threading.Event(), [0, 0], []

    def ask() -> None:
        while not stop.is_set():
            try:
                with watcher.serving() as recommender:
                    found = lists(recommender)
                answers[truth.index(found)] += 1
            except Exception as error:
                wrong.append(error)
                return

    threads = threading.active_count()
    thread = threading.Thread(target=ask)
    thread.start()
    memory, taken, opened = [], [weakref.ref(watcher.recommender)], []
    for number in range(1, SWAPS + 1):
        go_live(store, saved[number % 2], number)
        assert watcher.poll(START + timedelta(days=number)), watcher.metrics(START)
        store.prune(keep=1)
        seen = sum(answers)
        while sum(answers) < seen + 2 and not wrong:
            time.sleep(0.005)
        gc.collect()
        memory.append(resident())
        taken.append(weakref.ref(watcher.recommender))
        opened.append(len(list(Path("/proc/self/fd").iterdir())))
        # The one that is served, and the one before where the thread has not let go of it yet.
        assert sum(one() is not None for one in taken) <= 2
    stop.set()
    thread.join()
    print(f"{SWAPS} swaps, {answers} answers, {memory[len(memory) // 5] / 2**20:.0f} -> {memory[-1] / 2**20:.0f} MiB")
    assert wrong == []
    assert min(answers) >= SWAPS // 2
    assert len(store.versions()) <= 3
    assert max(opened[2:]) <= opened[1] + 2, opened  # the holds of two versions
    assert threading.active_count() <= threads + 1
    # The second half may not need more than noise beyond what a few swaps needed.
    assert memory[-1] < memory[len(memory) // 5] + 64 * 2**20, [value >> 20 for value in memory]


def resident() -> int:
    """Bytes in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
