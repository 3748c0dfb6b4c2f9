"""Sealing, swapping and verifying one bundle."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import bundle
from recsys.bundle import open_bundle, write_bundle
from recsys.errors import BundleCorrupt, BundleIncompatible, BundleNotFound, PublishRefused

CONTENT = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)), "empty": b"", "deep/ü.json": b"{}"}
NAMES = [*CONTENT, "MANIFEST.json"]


def fill(staging: Path, content: dict[str, bytes] = CONTENT) -> dict[str, object]:
    for name, data in content.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)
    return {"n_items": 3, "rate": 0.1, "title": "naïve"}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    body = json.loads((folder / "MANIFEST.json").read_text())
    del body["seal"]
    change(body)
    seal = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps({**body, "seal": seal}, indent=1) + "\n")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "b", fill)
    return tmp_path / "b"


class TestRoundTrip:
    """What was written is what is opened."""

    def test_manifest(self, sealed: Path) -> None:
        manifest = open_bundle(sealed)
        assert manifest.format == "1"
        assert manifest.metadata == {"n_items": 3, "rate": 0.1, "title": "naïve"}
        assert manifest.versions["numpy"] == np.__version__
        assert {name: seal.bytes for name, seal in manifest.files.items()} == {
            name: len(data) for name, data in CONTENT.items()
        }
        assert manifest.files["a.txt"].sha256 == hashlib.sha256(b"one").hexdigest()

    def test_files(self, sealed: Path) -> None:
        assert tree(sealed) == {**CONTENT, "MANIFEST.json": (sealed / "MANIFEST.json").read_bytes()}

    def test_nothing_is_left_beside(self, sealed: Path) -> None:
        write_bundle(sealed, fill)
        assert [path.name for path in sealed.parent.iterdir()] == ["b"]

    def test_replaces_all_of_the_old_one(self, sealed: Path) -> None:
        write_bundle(sealed, lambda staging: fill(staging, {"new": b"2"}))
        assert set(tree(sealed)) == {"new", "MANIFEST.json"}
        assert set(open_bundle(sealed).files) == {"new"}

    def test_makes_parents_and_takes_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x" / "y").mkdir(parents=True)
        for folder in (tmp_path / "x" / "y", tmp_path / "new" / "er" / "b"):
            write_bundle(folder, fill)
            assert set(open_bundle(folder).files) == set(CONTENT)

    def test_relative_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write_bundle(Path("b"), fill)
        assert open_bundle(Path("b")) == open_bundle(tmp_path / "b")

    def test_same_content_same_bytes(self, sealed: Path) -> None:
        write_bundle(sealed.with_name("c"), fill)
        assert tree(sealed) == tree(sealed.with_name("c"))

    @settings(max_examples=30, deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=9),
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        )
    )
    def test_any_metadata(self, tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, object]) -> None:
        folder = tmp_path_factory.mktemp("metadata") / "b"
        write_bundle(folder, lambda _: metadata)
        assert open_bundle(folder).metadata == metadata


class TestDamage:
    """No damage passes, and the message names the file."""

    @pytest.mark.parametrize("name", [name for name in CONTENT if CONTENT[name]])
    def test_flipped_bit(self, sealed: Path, name: str) -> None:
        data = bytearray((sealed / name).read_bytes())
        for position in range(len(data)):
            data[position] ^= 1 << position % 8
            (sealed / name).write_bytes(data)
            with pytest.raises(BundleCorrupt, match=f"{name} has another sha256 .*; restore the bundle"):
                open_bundle(sealed)
            data[position] ^= 1 << position % 8

    def test_flipped_bit_in_the_manifest(self, sealed: Path) -> None:
        path = sealed / "MANIFEST.json"
        data = bytearray(path.read_bytes())
        format_digit = data.index(b'"1"') + 1
        for position in range(len(data)):
            expected = BundleIncompatible if position == format_digit else BundleCorrupt
            data[position] ^= 1 << position % 4
            path.write_bytes(data)
            with pytest.raises(expected):
                open_bundle(sealed)
            data[position] ^= 1 << position % 4

    @pytest.mark.parametrize("name", [name for name in CONTENT if CONTENT[name]])
    def test_truncated(self, sealed: Path, name: str) -> None:
        os.truncate(sealed / name, len(CONTENT[name]) - 1)
        with pytest.raises(BundleCorrupt, match=rf"{name} has \d+ bytes, the manifest says \d+"):
            open_bundle(sealed)

    @pytest.mark.parametrize("length", [0, 1, 100, -1])
    def test_truncated_manifest(self, sealed: Path, length: int) -> None:
        path = sealed / "MANIFEST.json"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(BundleCorrupt, match=r"MANIFEST\.json is damaged; restore the bundle"):
            open_bundle(sealed)

    @pytest.mark.parametrize("name", list(CONTENT))
    def test_missing(self, sealed: Path, name: str) -> None:
        (sealed / name).unlink()
        with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
            open_bundle(sealed)

    def test_extra(self, sealed: Path) -> None:
        (sealed / "deep" / "extra.txt").write_bytes(b"")
        with pytest.raises(BundleCorrupt, match=r"deep/extra\.txt is not in the manifest"):
            open_bundle(sealed)

    @pytest.mark.parametrize("name", list(CONTENT))
    def test_link_to_the_same_bytes(self, sealed: Path, name: str) -> None:
        (sealed / name).rename(sealed.parent / "elsewhere")
        (sealed / name).symlink_to(sealed.parent / "elsewhere")
        with pytest.raises(BundleCorrupt, match=f"{name} is not a regular file"):
            open_bundle(sealed)

    def test_linked_manifest(self, sealed: Path) -> None:
        (sealed / "MANIFEST.json").rename(sealed.parent / "elsewhere")
        (sealed / "MANIFEST.json").symlink_to(sealed.parent / "elsewhere")
        with pytest.raises(BundleCorrupt, match=r"MANIFEST\.json is not a regular file"):
            open_bundle(sealed)

    def test_linked_folder(self, sealed: Path) -> None:
        (sealed / "deep").rename(sealed.parent / "elsewhere")
        (sealed / "deep").symlink_to(sealed.parent / "elsewhere")
        with pytest.raises(BundleCorrupt, match="deep is not in the manifest"):
            open_bundle(sealed)

    def test_pipe_is_not_opened(self, sealed: Path) -> None:
        (sealed / "a.txt").unlink()
        os.mkfifo(sealed / "a.txt")
        with pytest.raises(BundleCorrupt, match=r"a\.txt is not a regular file"):
            open_bundle(sealed)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
    def test_unreadable(self, sealed: Path) -> None:
        (sealed / "a.txt").chmod(0)
        with pytest.raises(BundleCorrupt, match=r"a\.txt cannot be read"):
            open_bundle(sealed)

    def test_read_error(self, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(path: Path) -> str:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(bundle, "sha256_of", broken)
        with pytest.raises(BundleCorrupt, match=r"a\.txt cannot be read \(.*Input/output error"):
            open_bundle(sealed)


class TestManifest:
    """What a manifest may say."""

    @pytest.mark.parametrize("name", ["../b/a.txt", "/etc/passwd", "deep/../a.txt", "./a.txt", "deep\\b", "a//b", ""])
    def test_refuses_paths(self, sealed: Path, name: str) -> None:
        reseal(sealed, lambda body: body["files"].update({name: body["files"]["a.txt"]}))
        with pytest.raises(BundleCorrupt, match="not a path in the bundle"):
            open_bundle(sealed)

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.pop("files"),
            lambda body: body.pop("versions"),
            lambda body: body.update(surprise=1),
            lambda body: body.update(files=[]),
            lambda body: body["files"].update({"a.txt": {"bytes": 3}}),
        ],
    )
    def test_refuses_other_entries(self, sealed: Path, change: Callable[[dict[str, Any]], object]) -> None:
        reseal(sealed, change)
        with pytest.raises(BundleCorrupt, match="lacks an entry or has an unknown one"):
            open_bundle(sealed)

    def test_refuses_names_that_differ_in_case_alone(self, sealed: Path) -> None:
        reseal(sealed, lambda body: body["files"].update({"A.txt": body["files"]["a.txt"]}))
        with pytest.raises(BundleCorrupt, match=r"has 'A\.txt' and 'a\.txt', which differ in case alone"):
            open_bundle(sealed)

    def test_refuses_a_million_files(self, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle, "MAX_FILES", 3)
        with pytest.raises(BundleCorrupt, match="has 4 files, at most 3 can be"):
            open_bundle(sealed)
        with pytest.raises(PublishRefused, match="has 4 files, at most 3 can be"):
            write_bundle(sealed, fill)

    @pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"3", b"\xff", b'{"seal": 1}'])
    def test_unsealed_refuses(self, raw: bytes) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            bundle.unsealed(raw)

    def test_replace_file_keeps_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle.replace_file(tmp_path / "x", b"old")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            bundle.replace_file(tmp_path / "x", b"new")
        assert tree(tmp_path) == {"x": b"old"}

    @pytest.mark.parametrize("found", ["2", "0", 1, None])
    def test_refuses_another_format(self, sealed: Path, found: object) -> None:
        (sealed / "MANIFEST.json").write_text(json.dumps({"format": found, "something": "new"}))
        with pytest.raises(BundleIncompatible, match=f"has format {found!r}, this version reads '1'; use the version"):
            open_bundle(sealed)

    @pytest.mark.parametrize("text", ["[]", "3", "{}", "null", "[" * 100_000, '{"format": "1", "x": 1' + "0" * 9999])
    def test_refuses_other_json(self, sealed: Path, text: str) -> None:
        (sealed / "MANIFEST.json").write_text(text)
        with pytest.raises(BundleCorrupt, match=r"MANIFEST\.json is damaged"):
            open_bundle(sealed)

    @pytest.mark.parametrize("name", ["b", "b/c", "."])
    def test_not_found(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BundleNotFound, match=r"holds no MANIFEST\.json, so there is no bundle; check the path"):
            open_bundle(tmp_path / name)

    def test_not_found_names_what_an_interrupted_swap_left(self, sealed: Path) -> None:
        sealed.rename(sealed.with_name(".b.replaced-0123abcd"))
        with pytest.raises(BundleNotFound, match=r"interrupted swap left .*\.b\.replaced-0123abcd; rename it to b\."):
            open_bundle(sealed)


class TestFailure:
    """Whatever goes wrong, the old bundle stays and nothing lies beside it."""

    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(28, "full")])
    @pytest.mark.parametrize("step", ["write", "sealed_bytes", "_swap", "sync"])
    def test_exception(self, sealed: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str) -> None:
        def fail(*_: object) -> Any:
            raise error

        def write(staging: Path) -> dict[str, object]:
            fill(staging, {"half": b"done"})
            return fail() if step == "write" else {}

        before = tree(sealed)
        if step != "write":
            monkeypatch.setattr(bundle, step, fail)
        with pytest.raises(type(error)):
            write_bundle(sealed, write)
        monkeypatch.undo()
        assert tree(sealed) == before
        assert [path.name for path in sealed.parent.iterdir()] == ["b"]
        open_bundle(sealed)

    @pytest.mark.parametrize("n_renames", [0, 1])
    def test_failed_rename_puts_the_old_one_back(
        self, sealed: Path, monkeypatch: pytest.MonkeyPatch, n_renames: int
    ) -> None:
        rename, done = Path.rename, []

        def fail_once(path: Path, target: Path) -> Path:
            done.append(target)
            if len(done) == n_renames + 1:
                raise KeyboardInterrupt
            return rename(path, target)

        before = tree(sealed)
        monkeypatch.setattr(Path, "rename", fail_once)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(sealed, fill)
        assert tree(sealed) == before
        assert [path.name for path in sealed.parent.iterdir()] == ["b"]

    @pytest.mark.parametrize("metadata", [{"x": object()}, {"x": float("nan")}])
    def test_metadata_that_is_not_json(self, tmp_path: Path, metadata: dict[str, object]) -> None:
        with pytest.raises((TypeError, ValueError), match="JSON"):
            write_bundle(tmp_path / "b", lambda _: metadata)
        assert list(tmp_path.iterdir()) == []

    def test_everything_is_synced_before_the_swap_and_the_manifest_last(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        sync, rename = bundle.sync, Path.rename

        def record_sync(path: Path) -> None:
            steps.append(path.name)
            sync(path)

        def record_rename(path: Path, target: Path) -> Path:
            steps.append("rename")
            return rename(path, target)

        monkeypatch.setattr(bundle, "sync", record_sync)
        monkeypatch.setattr(Path, "rename", record_rename)
        write_bundle(tmp_path / "parent" / "b", fill)
        manifest = steps.index("MANIFEST.json")
        assert sorted(steps[:manifest]) == ["a.txt", "b.bin", "empty", "ü.json"]
        assert steps[manifest + 1 : manifest + 3] == ["er", "deep"]
        assert steps[manifest + 3].startswith(".b.staging-")
        assert steps[manifest + 4 :] == ["rename", "parent"]


class TestRefusal:
    """What is not a bundle is not replaced, and what is not a file is not sealed."""

    def test_foreign_folder(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "thesis.txt").write_text("precious")
        with pytest.raises(PublishRefused, match=r"holds files but no MANIFEST\.json.*choose another place"):
            write_bundle(tmp_path / "b", fill)
        assert tree(tmp_path) == {"b/thesis.txt": b"precious"}

    def test_folder_that_turned_foreign_meanwhile(self, tmp_path: Path) -> None:
        def write(staging: Path) -> dict[str, object]:
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "thesis.txt").write_text("precious")
            return fill(staging)

        with pytest.raises(PublishRefused, match=r"holds files but no MANIFEST\.json"):
            write_bundle(tmp_path / "b", write)
        assert tree(tmp_path) == {"b/thesis.txt": b"precious"}

    def test_file_and_link(self, sealed: Path) -> None:
        (sealed.parent / "file").write_text("x")
        (sealed.parent / "link").symlink_to(sealed)
        (sealed.parent / "dangling").symlink_to("nowhere")
        for name in ("file", "link", "dangling"):
            with pytest.raises(PublishRefused, match=f"{name} is a link or a file, not a folder"):
                write_bundle(sealed.parent / name, fill)

    def test_link_in_the_bundle(self, tmp_path: Path) -> None:
        def write(staging: Path) -> dict[str, object]:
            (staging / "link").symlink_to(tmp_path)
            return {}

        with pytest.raises(PublishRefused, match="link is not a regular file"):
            write_bundle(tmp_path / "b", write)
        assert list(tmp_path.iterdir()) == []

    def test_own_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(PublishRefused, match=r"MANIFEST\.json is written by the seal"):
            write_bundle(tmp_path / "b", lambda staging: fill(staging, {"MANIFEST.json": b"{}"}))


WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from recsys import bundle

    def pause(*_):
        print("ready", flush=True)
        time.sleep(60)

    def write(staging):
        (staging / "half").write_bytes(b"done")
        if sys.argv[2] == "write":
            pause()
        return {}

    if sys.argv[2] != "write":
        setattr(bundle, sys.argv[2], pause)
    bundle.write_bundle(Path(sys.argv[1]), write)
""")


@pytest.mark.parametrize("step", ["write", "sha256_of", "sealed_bytes", "_swap"])
def test_killed_writer_leaves_the_old_bundle(sealed: Path, step: str) -> None:
    before = tree(sealed)
    command = [sys.executable, "-c", WRITER, str(sealed), step]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=30) == -signal.SIGKILL
    assert tree(sealed) == before
    assert set(open_bundle(sealed).files) == set(CONTENT)
    write_bundle(sealed, lambda staging: fill(staging, {"new": b"2"}))
    assert set(open_bundle(sealed).files) == {"new"}
