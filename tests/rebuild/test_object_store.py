"""The store over objects, against an S3-compatible server on this machine."""

import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle import MANIFEST, sealed_bytes, unsealed
from recsys.cli import exit_code
from recsys.errors import (
    BundleCorrupt,
    BundleError,
    BundleIncompatible,
    BundleLocked,
    BundleNotFound,
    InvalidConfig,
    PublishRefused,
)
from recsys.rebuild import remote
from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.places import create_store, open_store
from recsys.rebuild.remote import Remote
from recsys.rebuild.store import Store

obstore = pytest.importorskip("obstore", reason="obstore is not installed (recsys-twostage[object-store])")
moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (comes with moto[server])")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(bucket: Any, tmp_path: Path) -> ObjectStore:
    """Two versions, the second live."""
    store = ObjectStore.create(f"s3://{bucket.name}/stores/one", tmp_path / "work")
    for number in range(2):
        go_live(store, number)
    return store


def publish(store: ObjectStore, number: int, metadata: dict[str, Any] | None = None) -> str:
    run_id = f"run-{number}"
    folder = store.stage(run_id)
    (folder / "a.txt").write_text(str(number))
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "b.json").write_text("{}")
    return store.publish(run_id, metadata or {"number": number}, as_of_stamp=START + timedelta(days=number))


def go_live(store: ObjectStore, number: int) -> str:
    with store.lock(f"run-{number}"):
        version = publish(store, number)
        store.promote(version, run_id=f"run-{number}", reason="test", promoted_at=START)
    return version


def key(bucket: Any, name: str) -> Any:
    return bucket.Object(f"stores/one/{name}")


def test_the_server_honours_conditions(bucket: Any) -> None:
    """Otherwise the tests below would prove nothing."""
    client = bucket.meta.client
    tag = client.put_object(Bucket=bucket.name, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123"'}):
        with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
            client.put_object(Bucket=bucket.name, Key="k", Body=b"2", **condition)
    client.put_object(Bucket=bucket.name, Key="k", Body=b"2", IfMatch=tag)


def test_as_in_a_folder(store: ObjectStore, tmp_path: Path) -> None:
    """The same content has the same names and hashes in both kinds of store."""
    local = Store.create(tmp_path / "local")
    for number in range(2):
        go_live(local, number)  # type: ignore[arg-type]
    assert store.versions() == local.versions()
    assert store.content_hash(store.versions()[0]) == local.content_hash(local.versions()[0])
    ours, theirs = store.current(), local.current()
    assert ours is not None
    assert theirs is not None
    assert (ours.seq, ours.version, ours.previous) == (theirs.seq, theirs.version, theirs.previous)
    assert store.verify().metadata == {"number": 1}
    back = store.rollback(run_id="x", promoted_at=START)
    assert (back.seq, back.version, back.reason) == (3, local.versions()[0], f"rollback from {local.versions()[1]}")
    assert store.promote(back.version, run_id="x", reason="again", promoted_at=START) == back
    assert store.published("run-1") == local.versions()[1]
    store.append_step("run-1", "done")
    assert store.steps("run-1")[-1] == {"step": "done"}


def test_servers_copy_and_load(store: ObjectStore, tmp_path: Path) -> None:
    current = store.current()
    assert current is not None
    server = ObjectStore.open(store.url, tmp_path / "server")
    with server.reading(current.version) as folder:
        assert (folder / "a.txt").read_text() == "1"
    before = (folder / "a.txt").stat().st_mtime_ns
    assert server.pull(current.version, tmp_path / "server" / "bundles") == folder
    assert (folder / "a.txt").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [current.version]


def test_damaged_copies_are_fetched_anew(store: ObjectStore) -> None:
    folder = store.bundle(store.versions()[0])
    (folder / "a.txt").write_text("9")
    assert (store.bundle(folder.name) / "a.txt").read_text() == "0"
    (folder / MANIFEST).unlink()
    assert (store.bundle(folder.name) / "a.txt").read_text() == "0"


def test_upload_cut_off(store: ObjectStore, bucket: Any) -> None:
    version = publish(store, 7)
    key(bucket, f"bundles/{version}/{MANIFEST}").delete()
    key(bucket, f"bundles/{version}/a.txt").delete()
    assert store.published("run-7") is None
    assert version not in store.versions()
    assert store.publish("run-7", {}, as_of_stamp=START) == version
    assert store.published("run-7") == version
    assert store.verify(version).metadata == {"number": 7}


def test_a_race_has_one_winner(store: ObjectStore, tmp_path: Path) -> None:
    """F7: four writers see the same CURRENT, then all promote at once."""
    for turn in range(5):
        won, lost = race(store.url, tmp_path, f"race-{turn}")
        assert won == [3 + turn]
        assert [exit_code(error) for error in lost] == [75] * 3
        assert all("was promoted by another writer meanwhile" in str(error) for error in lost)
    store.verify()


def race(url: str, folder: Path, name: str) -> tuple[list[int], list[BundleLocked]]:
    """Seqs of those who won, errors of those who lost."""
    barrier, won, lost = threading.Barrier(4), [], []

    def run(number: int) -> None:
        writer = ObjectStore.open(url, folder / f"writer-{number}")
        base, run_id = writer.current(), f"{name}-{number}"
        assert base is not None
        to = next(version for version in writer.versions() if version != base.version)
        with writer.lock(run_id):
            barrier.wait(20)
            try:
                won.append(writer.promote(to, run_id=run_id, reason="race", promoted_at=START).seq)
            except BundleLocked as error:
                lost.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, lost


def test_a_race_for_the_first_version(bucket: Any, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/fresh"
    one, two = (ObjectStore.create(url, tmp_path / name) for name in ("one", "two"))
    with one.lock("one"), two.lock("two"):
        one.promote(publish(one, 1), run_id="one", reason="x", promoted_at=START)
        version = publish(two, 2)
        with pytest.raises(BundleLocked, match="was promoted by another writer meanwhile; start again"):
            two.promote(version, run_id="two", reason="x", promoted_at=START)
    assert two.verify().metadata == {"number": 1}


def test_the_same_content_published_twice(store: ObjectStore, tmp_path: Path) -> None:
    """The manifest that came first is the one, for both."""
    other = ObjectStore.open(store.url, tmp_path / "other")
    version = publish(store, 7, {"by": "one"})
    assert publish(other, 7, {"by": "two"}) == version
    other.promote(version, run_id="x", reason="y", promoted_at=START)
    assert other.verify().metadata == {"by": "one"}
    with other.reading(version) as folder:
        assert b'"one"' in (folder / "MANIFEST.json").read_bytes()


@pytest.mark.parametrize("fault", ["flip", "cut", "missing", "extra"])
def test_damage(store: ObjectStore, bucket: Any, tmp_path: Path, fault: str) -> None:
    first, second = store.versions()
    thing = key(bucket, f"bundles/{first}/a.txt")
    if fault == "flip":
        thing.put(Body=b"1")
    elif fault == "cut":
        thing.put(Body=b"")
    elif fault == "missing":
        thing.delete()
    else:
        key(bucket, f"bundles/{first}/extra.txt").put(Body=b"")
    fresh = ObjectStore.open(store.url, tmp_path / "fresh")
    with pytest.raises(BundleCorrupt, match=r"another sha256|there is"):
        store.rollback(run_id="x", promoted_at=START)
    with pytest.raises(BundleCorrupt, match=r"another sha256|there is"):
        fresh.bundle(first)
    assert not any((fresh.root / "bundles").iterdir())
    current = store.current()
    assert current is not None
    assert current.version == second


def test_damaged_current(store: ObjectStore, bucket: Any) -> None:
    key(bucket, "CURRENT").put(Body=b"garbage")
    for call in (store.current, store.verify, lambda: store.rollback(run_id="x", promoted_at=START)):
        with pytest.raises(BundleCorrupt, match=r"CURRENT is damaged; `recsys-rebuild rollback --to"):
            call()
    with pytest.raises(BundleCorrupt, match="CURRENT is damaged"):
        store.promote(store.versions()[0], run_id="x", reason="y", promoted_at=START)
    assert store.rollback(store.versions()[0], run_id="x", promoted_at=START).seq == 3
    assert store.verify().metadata == {"number": 0}


def test_servers_keep_the_live_copy_and_the_one_before(store: ObjectStore, tmp_path: Path) -> None:
    server = ObjectStore.open(store.url, tmp_path / "server")
    held = ExitStack()
    for number in range(2, 7):
        version = go_live(store, number)
        before, held = held, ExitStack()
        held.enter_context(server.reading(version))
        before.close()  # as a watcher does once no request needs the older one
    current = store.current()
    assert current is not None
    copies = {path.name for path in (tmp_path / "server" / "bundles").iterdir()}
    assert copies == {current.version, current.previous}
    held.close()


def test_a_download_that_was_cut_off_is_pruned(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ObjectStore.open(store.url, tmp_path / "server")
    monkeypatch.setattr("recsys.rebuild.object_store.shutil.rmtree", lambda *_, **__: None)  # a kill cleans nothing
    monkeypatch.setattr("recsys.rebuild.object_store.writer_lock", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        server.pull(store.versions()[0], tmp_path / "server" / "bundles")
    monkeypatch.undo()
    assert list((tmp_path / "server" / "staging").rglob("a.txt"))
    assert not list((tmp_path / "server" / "bundles").iterdir())
    Store.open(tmp_path / "server").prune()
    assert not list((tmp_path / "server" / "staging").iterdir())


def test_a_slower_download_leaves_what_is_read_alone(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = store.current()
    assert current is not None
    quick, slow = (ObjectStore.open(store.url, tmp_path / "server") for _ in range(2))
    fetch = Remote.fetch
    with ExitStack() as held:

        def overtaken(self: Remote, *arguments: Any) -> Any:
            monkeypatch.setattr(Remote, "fetch", fetch)
            folder = held.enter_context(quick.reading(current.version))
            overtaken.inode = (folder / MANIFEST).stat().st_ino  # type: ignore[attr-defined]
            return fetch(self, *arguments)

        monkeypatch.setattr(Remote, "fetch", overtaken)
        folder = slow.pull(current.version, tmp_path / "server" / "bundles")
        assert (folder / MANIFEST).stat().st_ino == overtaken.inode  # type: ignore[attr-defined]
        assert Store.open(tmp_path / "server").drop([current.version]) == []  # the reader still holds it
    assert not list((tmp_path / "server" / "staging").iterdir())


def test_prune_where_the_live_version_is_gone(store: ObjectStore, bucket: Any) -> None:
    current = store.current()
    assert current is not None
    bucket.objects.filter(Prefix=f"stores/one/bundles/{current.version}").delete()
    with pytest.raises(BundleNotFound, match=f"has no object of {current.version}, which is live"):
        store.prune()


def test_manifest_that_leads_outside(store: ObjectStore, bucket: Any, tmp_path: Path) -> None:
    """F27: refused before anything is written."""
    version = publish(store, 7)
    manifest = key(bucket, f"bundles/{version}/MANIFEST.json")
    body = unsealed(manifest.get()["Body"].read())
    body["files"]["../../evil.txt"] = body["files"]["a.txt"]
    manifest.put(Body=sealed_bytes(body))
    with pytest.raises(BundleCorrupt, match="not a path in the bundle"):
        store.pull(version, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_prune(store: ObjectStore, bucket: Any) -> None:
    # Before the live version: what an upload after it left is spared, however short the grace.
    key(bucket, "bundles/20250101T000000Z-0123abcd/a.txt").put(Body=b"half an upload")
    for number in range(2, 6):
        go_live(store, number)
    versions = store.versions()
    assert store.prune(keep=0) == []
    assert store.prune(keep=0, pinned=[versions[1]], grace=timedelta(0)) == [versions[0], *versions[2:4]]
    assert store.versions() == [versions[1], *versions[4:]]
    assert not [thing.key for thing in bucket.objects.all() if versions[0] in thing.key or "20250101" in thing.key]
    assert store.verify().metadata == {"number": 5}


def test_what_is_no_store(bucket: Any, tmp_path: Path, store: ObjectStore) -> None:
    with pytest.raises(BundleNotFound, match="is not a store; check the URL"):
        ObjectStore.open(f"s3://{bucket.name}/nothing", tmp_path / "w")
    key(bucket, "thesis/a.txt").put(Body=b"precious")
    with pytest.raises(PublishRefused, match="holds objects but no FORMAT"):
        ObjectStore.create(f"s3://{bucket.name}/stores/one/thesis", tmp_path / "w")
    with pytest.raises(BundleNotFound, match="holds no version 20300101T000000Z-0123abcd; there are: 2026"):
        store.bundle("20300101T000000Z-0123abcd")
    key(bucket, "FORMAT").put(Body=b"2")
    with pytest.raises(BundleIncompatible, match="this version reads '1'"):
        ObjectStore.open(store.url, tmp_path / "w")


def test_nothing_live_yet(bucket: Any, tmp_path: Path) -> None:
    store = ObjectStore.create(f"s3://{bucket.name}/empty", tmp_path / "w")
    assert store.current() is None
    assert store.prune() == []
    with pytest.raises(BundleNotFound, match="has no live version yet"):
        store.verify()
    with pytest.raises(BundleNotFound, match="no earlier version to go back to"):
        store.rollback(run_id="x", promoted_at=START)


def test_service_without_conditional_put(tmp_path: Path) -> None:
    """obstore's local files know create-if-absent and no ETag condition."""
    (tmp_path / "remote").mkdir()
    with pytest.raises(PublishRefused, match="this service has no conditional put"):
        ObjectStore.create((tmp_path / "remote").as_uri(), tmp_path / "w")


def test_service_that_ignores_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Remote("memory://")
    objects.probe()
    monkeypatch.setattr(objects, "put_if", lambda path, data, tag: objects.put(path, data))
    with pytest.raises(PublishRefused, match=r"no conditional put.*condition 'create' went through"):
        objects.probe()


def test_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: Any) -> None:
    with pytest.raises(BundleError, match=r"cannot be reached|not a store") as caught:
        ObjectStore.open("s3://no-such-bucket-here/x", tmp_path / "w")
    assert exit_code(caught.value) == 69


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bucket: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "RETRY", {"max_retries": 0})
    with pytest.raises(BundleError, match="cannot be reached or refuses: ") as caught:
        ObjectStore.open(f"s3://{bucket.name}/x", tmp_path / "w")
    assert exit_code(caught.value) == 69


def test_open_store(store: ObjectStore, tmp_path: Path) -> None:
    assert isinstance(create_store(tmp_path / "folder"), Store)
    assert isinstance(open_store(str(tmp_path / "folder")), Store)
    assert open_store(store.url, tmp_path / "w").current() == store.current()
    assert create_store(store.url, tmp_path / "w").versions() == store.versions()
    with pytest.raises(InvalidConfig, match="what://x: "):
        open_store("what://x", tmp_path / "w")


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(InvalidConfig, match=r"s3://b needs obstore: pip install 'recsys-twostage\[object-store\]'"):
        Remote("s3://b")
