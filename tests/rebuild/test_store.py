"""The store in a folder: publish, promote, roll back, prune, and every fault that must leave the live version alone."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from recsys import bundle
from recsys.bundle import sealed_bytes
from recsys.cli import exit_code
from recsys.errors import (
    BundleCorrupt,
    BundleIncompatible,
    BundleLocked,
    BundleNotFound,
    InvalidConfig,
    PublishRefused,
    RecsysError,
)
from recsys.rebuild.current import order
from recsys.rebuild.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)


def publish(store: Store, number: int, *, at: datetime | None = None) -> str:
    run_id = f"run-{number}"
    folder = store.stage(run_id)
    (folder / "a.txt").write_text(str(number))
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "b.json").write_text("{}")
    return store.publish(run_id, {"number": number}, as_of_stamp=at or START + timedelta(days=number))


def go_live(store: Store, number: int) -> str:
    version = publish(store, number)
    store.promote(version, run_id=f"run-{number}", reason="test", promoted_at=START + timedelta(days=number))
    return version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three versions, the third live."""
    store = Store.create(tmp_path / "store")
    for number in range(3):
        go_live(store, number)
    return store


def live(store: Store) -> int:
    return int(store.verify().metadata["number"])


class TestLayout:
    """What may become a store, and what is one."""

    def test_create_twice_and_open(self, tmp_path: Path) -> None:
        Store.create(tmp_path / "a" / "b")
        Store.create(tmp_path / "a" / "b")
        store = Store.open(tmp_path / "a" / "b")
        assert store.current() is None
        assert store.versions() == []
        with pytest.raises(BundleNotFound, match="has no live version yet; recsys-rebuild init"):
            store.verify()

    def test_create_after_being_killed(self, tmp_path: Path) -> None:
        (tmp_path / ".FORMAT.new").write_text("")
        assert Store.create(tmp_path).versions() == []

    def test_foreign(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(PublishRefused, match="holds files but no FORMAT"):
            Store.create(tmp_path)
        with pytest.raises(PublishRefused, match="is a file, not a folder"):
            Store.create(tmp_path / "thesis.txt")
        for place in (tmp_path, tmp_path / "nothing", tmp_path / "thesis.txt"):
            with pytest.raises(BundleNotFound, match="is not a store; check the path"):
                Store.open(place)

    @pytest.mark.parametrize("found", ["2", "", "\x00"])
    def test_format_of_the_future(self, store: Store, found: str) -> None:
        (store.root / "FORMAT").write_text(found)
        with pytest.raises(BundleIncompatible, match="this version reads '1'; use the version"):
            Store.open(store.root)


class TestPromotion:
    """What is live, and what was."""

    def test_records(self, store: Store) -> None:
        first, second, third = store.versions()
        current = store.current()
        assert current is not None
        assert (current.seq, current.version, current.previous) == (3, third, second)
        assert (current.run_id, current.reason) == ("run-2", "test")
        assert current.promoted_at == "2026-01-03T00:00:00+00:00"
        assert first.startswith("20260101T000000Z-")
        assert current.manifest_sha256 == bundle.sha256_of(store.bundle(third) / "MANIFEST.json")
        assert (store.root / "CURRENT").stat().st_size <= 4096

    def test_live_already(self, store: Store) -> None:
        before = store.current()
        assert before is not None
        assert store.promote(before.version, run_id="x", reason="y", promoted_at=START) == before
        assert store.current() == before

    def test_rollback_and_forth(self, store: Store) -> None:
        first, second, third = store.versions()
        back = store.rollback(run_id="x", promoted_at=START)
        assert (back.seq, back.version, back.previous, back.reason) == (4, second, third, f"rollback from {third}")
        assert store.versions() == [first, third, second]
        assert store.rollback(run_id="x", promoted_at=START).version == third
        assert store.rollback(first, run_id="x", promoted_at=START).version == first

    def test_nothing_to_go_back_to(self, tmp_path: Path) -> None:
        store = Store.create(tmp_path)
        with pytest.raises(BundleNotFound, match="no earlier version to go back to"):
            store.rollback(run_id="x", promoted_at=START)

    def test_clocks_do_not_matter(self, store: Store) -> None:
        """F11: a version of another century is the newest all the same."""
        version = publish(store, 9, at=datetime(1970, 1, 1, tzinfo=UTC))
        assert store.versions()[0] == version
        current = store.promote(version, run_id="x", reason="y", promoted_at=datetime(1999, 1, 1, tzinfo=UTC))
        assert current.seq == 4
        assert store.versions()[-1] == version
        assert version not in store.prune(keep=1)

    def test_naive_times(self, store: Store) -> None:
        with pytest.raises(InvalidConfig, match=r"as_of_stamp .* has no time zone"):
            publish(store, 5, at=datetime(2026, 1, 1))
        with pytest.raises(InvalidConfig, match=r"promoted_at .* has no time zone"):
            store.rollback(run_id="x", promoted_at=datetime(2026, 1, 1))

    @pytest.mark.parametrize("version", ["../../etc", "/etc", "", "20260101T000000Z-0123abcd/..", "x\0y"])
    def test_names_that_are_no_versions(self, store: Store, version: str) -> None:
        with pytest.raises(BundleNotFound, match="is not the name of a version"):
            store.bundle(version)

    def test_unknown_version(self, store: Store) -> None:
        with pytest.raises(BundleNotFound, match="holds no version 20300101T000000Z-0123abcd; there are: 2026"):
            store.rollback("20300101T000000Z-0123abcd", run_id="x", promoted_at=START)
        assert live(store) == 2

    @pytest.mark.parametrize("run_id", ["../x", "", ".hidden", "a/b", "x" * 101])
    def test_run_ids(self, store: Store, run_id: str) -> None:
        for call in (store.stage, store.steps):
            with pytest.raises(InvalidConfig, match=r"run id .*: use up to 100 letters"):
                call(run_id)


class TestPublishing:
    """Sealed, whole, and not yet live."""

    def test_not_live(self, store: Store) -> None:
        version = publish(store, 7)
        assert live(store) == 2
        assert store.verify(version).metadata == {"number": 7}
        assert not any((store.root / "staging").iterdir())

    def test_twice_is_once(self, store: Store) -> None:
        version = publish(store, 7)
        assert publish(store, 7) == version
        assert store.publish("run-7", {}, as_of_stamp=START) == version
        assert store.published("run-7") == version
        assert store.published("another") is None
        assert len(store.versions()) == 4

    def test_staging_is_kept_for_resuming(self, store: Store) -> None:
        (store.stage("r") / "a.txt").write_text("half")
        assert (store.stage("r") / "a.txt").read_text() == "half"

    def test_killed_while_sealing(self, store: Store) -> None:
        folder = store.stage("run-7")
        (folder / "MANIFEST.json").write_text("{half")
        assert store.verify(publish(store, 7)).metadata == {"number": 7}

    def test_content_hash_leaves_metadata_out(self, store: Store) -> None:
        (store.stage("x") / "a.txt").write_text("same")
        (store.stage("y") / "a.txt").write_text("same")
        first = store.publish("x", {"took": 1.0}, as_of_stamp=START)
        second = store.publish("y", {"took": 2.0}, as_of_stamp=START + timedelta(days=1))
        assert first != second
        assert store.content_hash(first) == store.content_hash(second)

    def test_damaged_twin(self, store: Store) -> None:
        version = publish(store, 7)
        (store.bundle(version) / "a.txt").write_text("8")
        assert publish(store, 7) == version
        store.verify(version)

    def test_damaged_twin_that_is_live(self, store: Store) -> None:
        version = go_live(store, 7)
        (store.bundle(version) / "a.txt").write_text("8")
        with pytest.raises(BundleCorrupt, match=r"a\.txt has another sha256"):
            publish(store, 7)
        assert (store.bundle(version) / "a.txt").read_text() == "8"

    def test_empty(self, store: Store) -> None:
        store.stage("x")
        for run_id in ("x", "never-staged"):
            with pytest.raises(PublishRefused, match="holds no file; fill it"):
                store.publish(run_id, {}, as_of_stamp=START)

    @pytest.mark.parametrize("name", ["model.pkl", "pytorch_model.bin", "x.joblib", "modeling.py", "a.pt", "noending"])
    def test_formats_that_run_code(self, store: Store, name: str) -> None:
        """F28."""
        (store.stage("x") / name).write_text("")
        with pytest.raises(PublishRefused, match=f"holds {name}; a stored bundle holds .*safetensors"):
            store.publish("x", {}, as_of_stamp=START)

    def test_links_and_twins_in_case(self, store: Store) -> None:
        """F27."""
        (store.stage("x") / "a.txt").symlink_to("/etc/passwd")
        with pytest.raises(PublishRefused, match="is not a regular file"):
            store.publish("x", {}, as_of_stamp=START)
        for name in ("A.txt", "a.txt"):
            (store.stage("y") / name).write_text("")
        with pytest.raises(PublishRefused, match="which differ in case alone"):
            store.publish("y", {}, as_of_stamp=START)


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sealed file as somebody would who knows how it is sealed."""
    body = bundle.unsealed(path.read_bytes())
    change(body)
    path.write_bytes(sealed_bytes(body))


class TestDamage:
    """F5, F6, F10, F27: named errors, and nothing is taken for good that is not."""

    def test_every_byte_of_current(self, store: Store) -> None:
        path = store.root / "CURRENT"
        data = bytearray(path.read_bytes())
        for position in range(len(data)):
            data[position] ^= 1 << position % 8
            path.write_bytes(data)
            with pytest.raises(BundleCorrupt, match=r"CURRENT is damaged; `recsys-rebuild rollback --to VERSION`"):
                store.current()
            data[position] ^= 1 << position % 8

    @pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b"null", b"[" * 4000, b"\xff"])
    def test_garbage_in_current(self, store: Store, content: bytes) -> None:
        (store.root / "CURRENT").write_bytes(content)
        calls: list[Callable[[], object]] = [
            store.current,
            store.verify,
            store.prune,
            lambda: store.rollback(run_id="x", promoted_at=START),
            lambda: store.promote(store.versions()[0], run_id="x", reason="y", promoted_at=START),
        ]
        for call in calls:
            with pytest.raises(BundleCorrupt, match="CURRENT is damaged"):
                call()
        repaired = store.rollback(store.versions()[-1], run_id="x", promoted_at=START)
        assert (repaired.seq, repaired.reason) == (4, "rollback from a damaged CURRENT")
        assert live(store) == 2

    def test_huge_current(self, store: Store) -> None:
        (store.root / "CURRENT").write_bytes(b" " * 5000)
        with pytest.raises(BundleCorrupt, match="has 5,000 bytes, a record has at most 4,096"):
            store.current()

    def test_current_is_a_folder(self, store: Store) -> None:
        (store.root / "CURRENT").unlink()
        (store.root / "CURRENT").mkdir()
        with pytest.raises(BundleCorrupt, match="CURRENT cannot be read"):
            store.current()

    @pytest.mark.parametrize(
        "change", [{"version": "../../etc"}, {"version": None}, {"previous": "x"}, {"seq": "1"}, {"seq": True}]
    )
    def test_forged_current(self, store: Store, change: dict[str, object]) -> None:
        forge(store.root / "CURRENT", lambda body: body.update(change))
        with pytest.raises(BundleCorrupt, match="says what no record can say"):
            store.current()

    def test_current_of_another_layout(self, store: Store) -> None:
        forge(store.root / "CURRENT", lambda body: body.update(surprise=1))
        with pytest.raises(BundleCorrupt, match="CURRENT is damaged"):
            store.current()

    def test_current_names_what_is_not_there(self, store: Store) -> None:
        current = store.current()
        assert current is not None
        shutil.rmtree(store.bundle(current.version))
        with pytest.raises(BundleNotFound, match=f"holds no version {current.version}; there are: 2026"):
            store.verify()

    def test_current_from_a_backup(self, store: Store) -> None:
        """An older record: no seq is given twice."""
        old = (store.root / "CURRENT").read_bytes()
        go_live(store, 5)
        (store.root / "CURRENT").write_bytes(old)
        assert store.rollback(run_id="x", promoted_at=START).seq == 5

    def test_damaged_promotion_counts_all_the_same(self, store: Store) -> None:
        (store.root / "promotions" / "00000003.json").write_text("")
        (store.root / "CURRENT").unlink()
        assert store.rollback(store.versions()[0], run_id="x", promoted_at=START).seq == 4

    @pytest.mark.parametrize("fault", ["flip", "cut", "missing", "extra", "swapped"])
    @pytest.mark.parametrize("name", ["a.txt", "deep/b.json", "MANIFEST.json"])
    def test_files(self, store: Store, fault: str, name: str) -> None:
        version = publish(store, 7)
        path, data = store.bundle(version) / name, (store.bundle(version) / name).read_bytes()
        if fault == "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        elif fault == "cut":
            path.write_bytes(data[:-1])
        elif fault == "missing":
            path.unlink()
        elif fault == "extra":
            path.with_name("extra.txt").write_text("")
        else:
            shutil.copytree(store.bundle(store.versions()[0]), path.parents[name.count("/")], dirs_exist_ok=True)
        for call in (store.promote, store.rollback):
            facts = {"reason": "x"} if call == store.promote else {}
            with pytest.raises((BundleCorrupt, BundleNotFound)) as caught:
                call(version, run_id="x", promoted_at=START, **facts)  # type: ignore[operator]
            assert exit_code(caught.value) == 69
        assert live(store) == 2

    def test_another_version_under_this_name(self, store: Store) -> None:
        first, second, _ = store.versions()
        shutil.rmtree(store.bundle(second))
        shutil.copytree(store.bundle(first), store.root / "bundles" / second)
        with pytest.raises(BundleCorrupt, match="holds another version's files"):
            store.rollback(second, run_id="x", promoted_at=START)

    def test_same_files_with_another_manifest(self, store: Store) -> None:
        current = store.current()
        assert current is not None
        forge(store.bundle(current.version) / "MANIFEST.json", lambda body: body["metadata"].update(number=99))
        store.verify(current.version)
        with pytest.raises(BundleCorrupt, match=r"has another manifest than .*CURRENT names"):
            store.verify()
        with pytest.raises(BundleCorrupt, match="has another manifest"):
            store.promote(current.version, run_id="x", reason="y", promoted_at=START)

    def test_bundle_of_the_future(self, store: Store) -> None:
        """F29."""
        version = publish(store, 7)
        path = store.bundle(version) / "MANIFEST.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": "2"}))
        with pytest.raises(BundleIncompatible, match="has format '2', this version reads '1'; use the version"):
            store.promote(version, run_id="x", reason="y", promoted_at=START)
        assert live(store) == 2

    def test_pickle_in_a_foreign_bundle(self, store: Store) -> None:
        folder = store.root / "bundles" / "20270101T000000Z-00000000"
        folder.mkdir()
        (folder / "model.pkl").write_text("cos\nsystem\n")
        manifest = bundle.seal_bundle(folder, {})
        from recsys.rebuild.current import content_hash_of

        version = f"20270101T000000Z-{content_hash_of(manifest)[:8]}"
        folder.rename(folder.with_name(version))
        with pytest.raises(PublishRefused, match=r"holds model\.pkl"):
            store.promote(version, run_id="x", reason="y", promoted_at=START)

    def test_damaged_log(self, store: Store) -> None:
        (store.root / "runs" / "x.json").write_text("{")
        with pytest.raises(BundleCorrupt, match=r"x\.json is damaged; remove it"):
            store.append_step("x", "begin")


class TestDisk:
    """F4: full, read-only, broken."""

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("call", ["fsync", "rename", "replace", "open", "write"])
    def test_each_step_of_each_write(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, call: str, error: int
    ) -> None:
        before = store.current()
        assert before is not None
        (store.stage("run-7") / "a.txt").write_text("7")
        codes: list[int] = []
        for step in range(100):
            with monkeypatch.context() as patch:
                fail_at(patch, call, step, OSError(error, os.strerror(error)), store.root)
                try:
                    version = store.publish("run-7", {"number": 7}, as_of_stamp=START)
                    store.promote(version, run_id="run-7", reason="x", promoted_at=START)
                except OSError as found:
                    codes.append(exit_code(found))
                else:
                    break
            now = store.current()
            assert now is not None
            # After the rename of CURRENT only the flush of its folder can fail: then the new version is live, whole.
            assert now == before or now.run_id == "run-7"
            store.verify()
            for name in store.versions():
                store.verify(name)
        assert live(store) == 7
        assert set(codes) == {73 if error == errno.ENOSPC else 74}

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only(self, store: Store) -> None:
        version = publish(store, 7)
        store.root.chmod(0o555)
        try:
            with pytest.raises(OSError, match="Permission denied"):
                store.promote(version, run_id="x", reason="y", promoted_at=START)
            assert Store.open(store.root).verify().metadata == {"number": 2}
        finally:
            store.root.chmod(0o755)

    def test_everything_named_is_on_disk_before_current(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """F3: what a power cut may not reorder."""
        steps: list[str] = []
        fsync, replace, rename = os.fsync, Path.replace, Path.rename

        def record(descriptor: int) -> None:
            steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
            fsync(descriptor)

        def moved(how: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
            def move(path: Path, target: Path) -> Path:
                steps.append(f"{path.name} -> {target.name}")
                return how(path, target)

            return move

        monkeypatch.setattr(os, "fsync", record)
        monkeypatch.setattr(Path, "replace", moved(replace))
        monkeypatch.setattr(Path, "rename", moved(rename))
        version = go_live(store, 7)
        published = steps.index(f"run-7 -> {version}")
        assert {"sync a.txt", "sync b.json", "sync MANIFEST.json", "sync deep", "sync run-7"} <= set(steps[:published])
        assert steps[published + 1 : published + 3] == ["sync bundles", "sync staging"]
        assert steps[-3:] == ["sync .CURRENT.new", ".CURRENT.new -> CURRENT", "sync store"]


def fail_at(patch: pytest.MonkeyPatch, call: str, step: int, error: OSError, root: Path) -> None:
    """Let the call of that number fail."""
    owner: Any = {"fsync": os, "rename": Path, "replace": Path, "open": Path, "write": Path}[call]
    name = {"write": "write_bytes"}.get(call, call)
    original, made = getattr(owner, name), []

    def count(*arguments: Any, **named: Any) -> Any:
        if call != "open" or "w" in str(arguments[1:]) + str(named):
            made.append(1)
            if len(made) == step + 1:
                raise error
        return original(*arguments, **named)

    patch.setattr(owner, name, count)


class TestPruning:
    """Only what nobody needs goes."""

    def test_keeps(self, store: Store) -> None:
        for number in range(3, 8):
            go_live(store, number)
        versions = store.versions()
        store.rollback(versions[2], run_id="x", promoted_at=START)
        with store.reading(versions[0]):
            assert store.prune(keep=2, pinned=[versions[4]]) == [versions[n] for n in (1, 3, 5, 6)]
        assert store.versions() == [versions[n] for n in (0, 4, 7, 2)]
        assert store.prune(keep=0) == [versions[0], versions[4]]
        assert live(store) == 2

    def test_two_readers(self, store: Store) -> None:
        first = store.versions()[0]
        with store.reading(first), store.reading(first) as folder:
            assert store.prune(keep=0) == []
            assert (folder / "a.txt").read_text() == "0"
        assert store.prune(keep=0) == [first]

    def test_reader_in_another_process(self, store: Store) -> None:
        program = """
            import sys
            from pathlib import Path
            from recsys.rebuild.store import Store
            store = Store.open(Path(sys.argv[1]))
            with store.reading(store.versions()[0]):
                print("reading", flush=True)
                sys.stdin.read()
        """
        with other(program, store.root) as reader:
            assert store.prune(keep=0) == []
            reader.kill()
            reader.wait()
        assert len(store.prune(keep=0)) == 1

    def test_gone_for_readers(self, store: Store) -> None:
        first = store.versions()[0]
        (store.bundle(first) / "MANIFEST.json").unlink()
        with (
            pytest.raises(BundleNotFound, match=f"no longer holds version {first}; read CURRENT again"),
            store.reading(first),
        ):
            pass

    def test_dead_staging_and_halves(self, store: Store) -> None:
        (store.stage("dead") / "a.txt").write_text("x")
        (store.root / "staging" / "link").symlink_to("/etc")
        store.prune()
        assert not any((store.root / "staging").iterdir())

    def test_keep_below_zero(self, store: Store) -> None:
        with pytest.raises(InvalidConfig, match="keep is -1; it must be 0 or more"):
            store.prune(keep=-1)

    def test_order(self) -> None:
        names = [f"2026010{day}T000000Z-00000000" for day in range(1, 6)]
        promoted = {1: names[0], 2: names[3], 3: names[0], 4: ""}
        assert order(names, promoted) == [names[3], names[0], names[1], names[2], names[4]]


def other(program: str, root: Path) -> "subprocess.Popen[str]":
    """Another process, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


class TestLock:
    """F7: one writer, and never a stale lock."""

    HOLDER = """
        import sys
        from pathlib import Path
        from recsys.rebuild.store import Store
        with Store.open(Path(sys.argv[1])).lock("the-other"):
            print("held", flush=True)
            sys.stdin.read()
    """

    def test_holder_is_named_and_its_death_frees(self, store: Store) -> None:
        version = publish(store, 7)
        calls: list[Callable[[], object]] = [
            lambda: store.promote(version, run_id="x", reason="y", promoted_at=START),
            lambda: store.rollback(run_id="x", promoted_at=START),
            lambda: publish(store, 8),
            store.prune,
        ]
        with other(self.HOLDER, store.root) as holder:
            for call in calls:
                with pytest.raises(
                    BundleLocked, match=rf"written by run the-other \(process {holder.pid} on "
                ) as caught:
                    call()
                assert exit_code(caught.value) == 75
            assert live(store) == 2
            holder.kill()
            holder.wait()
        assert calls[0]()
        assert live(store) == 7

    def test_another_thread(self, store: Store) -> None:
        """The lock is its thread's, not the object's."""
        found: list[RecsysError] = []

        def write() -> None:
            try:
                store.prune()
            except BundleLocked as error:
                found.append(error)

        with store.lock("mine"):
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
        assert len(found) == 1

    def test_wait(self, store: Store) -> None:
        release = threading.Event()
        held = threading.Event()

        def hold() -> None:
            with Store.open(store.root).lock("short"):
                held.set()
                release.wait(5)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(5)
        threading.Timer(0.2, release.set).start()
        with store.lock("mine", wait=5.0):
            assert "mine" in (store.root / "LOCK").read_text()
        thread.join()

    def test_text_is_information_only(self, store: Store) -> None:
        (store.root / "LOCK").write_text("garbage")
        with store.lock("a"):
            (store.root / "LOCK").write_text("garbage")
            other_writer = Store(store.root).lock("b")
            with pytest.raises(BundleLocked, match="is being written by another process"), other_writer:
                pass

    def test_races(self, store: Store) -> None:
        """Many writers, each promoting its own: every seq once."""
        program = """
            import sys
            from datetime import datetime, UTC
            from pathlib import Path
            from recsys.rebuild.store import Store
            store = Store.open(Path(sys.argv[1]))
            print("ready", flush=True)
            sys.stdin.readline()
            for turn in range(5):
                with store.lock("racer", wait=20.0):
                    to = store.versions()[0]
                    print(store.promote(to, run_id="racer", reason="x", promoted_at=datetime.now(UTC)).seq)
        """
        racers = [other(program, store.root) for _ in range(3)]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        seqs = [int(line) for racer in racers for line in racer.communicate(timeout=60)[0].split()]
        assert sorted(seqs) == list(range(4, 19))


def test_going_to_what_is_live_keeps_the_way_back(store: Store) -> None:
    before = store.current()
    assert before is not None
    again = store.rollback(before.version, run_id="x", promoted_at=START)
    assert (again.version, again.previous, again.seq) == (before.version, before.previous, before.seq + 1)
    assert store.rollback(run_id="x", promoted_at=START).version == before.previous


def test_log(store: Store) -> None:
    store.append_step("r", "begin", inputs=["a"])
    store.append_step("r", "encode", items=3)
    assert store.steps("r") == [{"step": "begin", "inputs": ["a"]}, {"step": "encode", "items": 3}]
    assert store.steps("unknown") == []
