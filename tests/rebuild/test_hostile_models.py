"""F27 to F29: models that somebody has tampered with, and models of other versions, on their way into a store.

Each is sealed as a sound one is, so that no checksum finds it. None becomes live, or if `init` was told to make it so,
no run builds on it and no server takes it.
"""

import io
import json
import os
import pickle
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from recsys import Recommender
from recsys.bundle import MANIFEST, MAX_FILES, sealed_bytes, unsealed
from recsys.cli import exit_code
from recsys.errors import BundleCorrupt, BundleIncompatible, BundleNotFound, PublishRefused, RecsysError
from recsys.rebuild.current import following
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, init, run
from recsys.rebuild.store import Store
from recsys.rebuild.watcher import BundleWatcher
from recsys.synthetic import Synthetic

pytestmark = pytest.mark.usefixtures("no_other_process")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EASY = RebuildConfig(gates=GatesConfig(margin=1.0))
Reseal = Callable[[Callable[[Path], object]], Path]
Look = Callable[[Store], None]
PutLive = Callable[[Store, Path], str]


def zipped() -> bytes:
    """A zip bomb: 32 MiB of zeros in 32 KiB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../zeros", bytes(32 * 2**20))
    return packed.getvalue()


class Trap:
    """Pickled, it leaves a file behind wherever it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def refused_at_the_door(store: Store, folder: Path, kind: type[RecsysError], message: str, code: int) -> None:
    """`init` says no, and neither CURRENT nor a version has come of it."""
    before, versions = store.current(), store.versions()
    with pytest.raises(kind, match=message) as caught:
        init(store, folder, now=NOW, replace=True)
    assert exit_code(caught.value) == code
    assert (store.current(), store.versions()) == (before, versions)


def refused_when_live(
    store: Store, data: Synthetic, folder: Path, kind: type[RecsysError], message: str, put_live: PutLive
) -> None:
    """No `init` takes it. Made live by hand, no run builds on it, a server keeps what it has, a rollback ends it."""
    refused_at_the_door(store, folder, kind, message, 69)
    watcher = BundleWatcher(store, device="cpu")
    version = put_live(store, folder)
    with pytest.raises(kind, match=message) as caught:
        run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    assert exit_code(caught.value) == 69
    live = store.current()
    assert live is not None
    assert live.version == version
    assert not watcher.poll(NOW)
    assert watcher.metrics(NOW)["version"] == live.previous
    watcher.close()
    store.rollback(run_id="back", promoted_at=NOW)


@pytest.mark.parametrize(
    "name",
    ["model.pkl", "MODEL.PKL", "a.pickle", "a.joblib", "a.bin", "a.pt", "a.pth", "a.ckpt", "a.h5", "a.npz", "a.zip",
     "a.tar", "a.tar.gz", "a.json.gz", "a.so", "encoder/modeling_evil.py", "encoder/a.pyc", "a.ipynb", "a"],
)  # fmt: skip
def test_formats_that_run_code_or_unpack(store: Store, resealed: Reseal, still_serves: Look, name: str) -> None:
    folder = resealed(lambda folder: (folder / name).write_bytes(zipped()))
    refused_at_the_door(store, folder, PublishRefused, f"holds {name}; a stored bundle holds", 3)
    assert sum(path.stat().st_size for path in (store.root / "staging").rglob("*") if path.is_file()) < 2**24
    assert not (store.root / "zeros").exists()
    if name == "a.zip":
        still_serves(store)


def test_a_header_that_promises_more_than_there_is_memory(
    store: Store, data: Synthetic, resealed: Reseal, still_serves: Look, put_live: PutLive
) -> None:
    def swell(folder: Path) -> None:
        with (folder / "item_vectors.npy").open("wb") as stream:
            facts = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 64)}
            np.lib.format.write_array_header_1_0(stream, facts)
            stream.write(bytes(1000))

    refused_when_live(store, data, resealed(swell), BundleCorrupt, "does not open: Unable to allocate", put_live)
    still_serves(store)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("item_vectors.npy", "does not open: .*allow_pickle=False"),
        ("covisitation.safetensors", "does not open: "),
        ("ranker/model.txt", "does not open: "),
        ("items.parquet", "does not open: "),
        ("words/words.json", "does not open: "),
        ("index/index.faiss", "does not open: "),
    ],
)
def test_a_pickle_under_another_name(
    store: Store,
    data: Synthetic,
    resealed: Reseal,
    still_serves: Look,
    put_live: PutLive,
    tmp_path: Path,
    name: str,
    message: str,
) -> None:
    trace = tmp_path / "trace"

    def disguise(folder: Path) -> None:
        assert (folder / name).is_file()
        if name.endswith(".npy"):
            np.save(folder / name, np.array([Trap(trace)], dtype=object), allow_pickle=True)
        else:
            (folder / name).write_bytes(pickle.dumps(Trap(trace)))

    refused_when_live(store, data, resealed(disguise), BundleCorrupt, message, put_live)
    assert not trace.exists()
    still_serves(store)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("modules.json", lambda facts: [{**facts[0], "type": "evil.Evil"}, *facts[1:]]),
        ("config.json", lambda facts: {**facts, "model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}),
        ("config.json", lambda facts: {**facts, "auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}}),
    ],
    ids=["module", "unknown model", "known model"],
)
def test_an_encoder_that_wants_its_own_code(
    store: Store,
    data: Synthetic,
    resealed: Reseal,
    still_serves: Look,
    put_live: PutLive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    change: Callable[[Any], Any],
) -> None:
    """`trust_remote_code`: what it names is not imported, not even where it could be."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path / "code")

    def wish(folder: Path) -> None:
        path = folder / "encoder" / file
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    folder = resealed(wish)
    if file == "config.json" and json.loads((folder / "encoder" / file).read_text())["model_type"] == "bert":
        init(store, folder, now=NOW, replace=True)  # the library's own BERT reads it
        assert run(store, data.interactions, data.items, data.users, now=NOW, config=EASY).outcome == "promoted"
    else:
        refused_when_live(store, data, folder, BundleCorrupt, r"does not open: encoder .* did not load", put_live)
    assert "evil" not in sys.modules
    assert not (tmp_path / "trace").exists()
    still_serves(store)


def a_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero never ends
    except PermissionError:
        pytest.skip("making a device file needs root")


def a_socket(path: Path) -> None:
    at = os.open(path.parent, os.O_RDONLY)  # its own path is longer than a socket's may be
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{at}/{path.name}")
    os.close(at)


@pytest.mark.parametrize("make", [a_device, os.mkfifo, a_socket], ids=["device", "pipe", "socket"])
@pytest.mark.parametrize("where", ["model", "staging", "live"])
def test_special_files(
    store: Store, model: Path, still_serves: Look, tmp_path: Path, make: Callable[[Path], None], where: str
) -> None:
    """They are neither opened nor copied: one would hang the other never ends."""
    good = store.current()
    assert good is not None
    if where == "model":
        shutil.copytree(model, tmp_path / "model")
        make(tmp_path / "model" / "more.json")
        refused_at_the_door(store, tmp_path / "model", BundleCorrupt, r"more\.json is not in the manifest", 69)
        (tmp_path / "model" / "more.json").rename(tmp_path / "model" / "state.json")
        refused_at_the_door(store, tmp_path / "model", BundleCorrupt, r"state\.json is not a regular file", 69)
    elif where == "staging":
        make(store.stage("run-1") / "more.json")
        with pytest.raises(PublishRefused, match=r"more\.json is not a regular file; a bundle holds nothing else"):
            store.publish("run-1", {}, as_of_stamp=NOW)
    else:
        path = store.bundle(good.version) / "state.json"
        whole = path.read_bytes()
        path.unlink()
        make(path)
        with pytest.raises(BundleCorrupt, match=r"state\.json is not a regular file"):
            store.verify()
        path.unlink()
        path.write_bytes(whole)
    assert store.current() == good
    still_serves(store)


def forged(model: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the model whose manifest says something else, sealed as it should be."""
    folder = tmp_path / "forged"
    shutil.copytree(model, folder)
    body = unsealed((folder / MANIFEST).read_bytes())
    change(body)
    (folder / MANIFEST).write_bytes(sealed_bytes(body))
    return folder


def test_more_files_than_a_model_may_have(store: Store, model: Path, still_serves: Look, tmp_path: Path) -> None:
    """The manifest alone is enough to refuse it: no file is looked for."""

    def many(body: dict[str, Any]) -> None:
        body["files"] |= {f"{n}.json": body["files"]["state.json"] for n in range(MAX_FILES)}

    count = len(unsealed((model / MANIFEST).read_bytes())["files"]) + MAX_FILES
    message = f"has {count:,} files, at most {MAX_FILES:,} can be"
    refused_at_the_door(store, forged(model, tmp_path, many), BundleCorrupt, message, 69)
    still_serves(store)


def test_names_that_collide_where_case_does_not_count(
    store: Store, model: Path, still_serves: Look, tmp_path: Path
) -> None:
    message = r"has 'STATE\.json' and 'state\.json', which differ in case alone"

    def twin(body: dict[str, Any]) -> None:
        body["files"]["STATE.json"] = body["files"]["state.json"]

    folder = forged(model, tmp_path, twin)
    shutil.copy(folder / "state.json", folder / "STATE.json")
    refused_at_the_door(store, folder, BundleCorrupt, message, 69)
    staging = store.stage("run-1")
    for name in ("state.json", "STATE.json"):
        (staging / name).write_text("{}")
    with pytest.raises(PublishRefused, match=message):
        store.publish("run-1", {}, as_of_stamp=NOW)
    still_serves(store)


def settings_changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        change(state["config"])
        (folder / "state.json").write_text(json.dumps(state))

    return edit


def nameless(folder: Path) -> None:
    """The ranker as it was written before models carried the names of their features."""
    booster = lgb.Booster(model_file=folder / "ranker" / "model.txt")
    text = booster.model_to_string()
    trained = " ".join(booster.feature_name())
    plain = " ".join(f"Column_{place}" for place in range(booster.num_feature()))
    (folder / "ranker" / "model.txt").write_text(text.replace(f"feature_names={trained}", f"feature_names={plain}"))


def test_a_model_of_the_version_before(store: Store, data: Synthetic, model: Path, resealed: Reseal) -> None:
    """It lacks settings that came later and names in its ranker: both have what stands for them."""

    def older(folder: Path) -> None:
        nameless(folder)
        settings_changed(lambda config: [config.pop("keep_interest"), config["features"].pop("similar_length")])(folder)

    folder = resealed(older)
    people = data.users["user_id"].head(5)
    old, new = (Recommender.load(place, device="cpu").recommend(people, 5) for place in (folder, model))
    assert old.equals(new)
    init(store, folder, now=NOW, replace=True)
    watcher = BundleWatcher(store, device="cpu")
    assert run(store, data.interactions, data.items, data.users, now=NOW, config=EASY).outcome == "promoted"
    assert watcher.poll(NOW)
    with watcher.serving() as recommender:
        assert recommender.recommend(people, 5).height == 25
    watcher.close()


def test_a_model_of_the_version_after(
    store: Store, data: Synthetic, resealed: Reseal, still_serves: Look, put_live: PutLive
) -> None:
    folder = resealed(settings_changed(lambda config: config.update(warp=9)))
    message = r"settings that this version does not read \(unknown key warp.*Fit again, or load it with the version"
    refused_when_live(store, data, folder, BundleIncompatible, message, put_live)
    still_serves(store)


def test_another_layout_that_a_newer_writer_made_live(
    store: Store, data: Synthetic, model: Path, still_serves: Look
) -> None:
    """As where one machine of two has been upgraded: servers of this version keep what they hold and say why."""
    watcher = BundleWatcher(store, device="cpu")
    before = store.current()
    assert before is not None
    newer = store.root / "bundles" / "20990101T000000Z-0123abcd"
    shutil.copytree(model, newer)
    body = {**unsealed((newer / MANIFEST).read_bytes()), "format": "2"}
    (newer / MANIFEST).write_bytes(sealed_bytes(body))
    record = following(before, 1, newer.name, (newer / MANIFEST).read_bytes(), "newer", "rebuild", NOW)
    (store.root / "CURRENT").write_bytes(record.to_bytes())
    assert not watcher.poll(NOW)
    metrics = watcher.metrics(NOW)
    assert metrics["version"] == before.version
    assert "has format '2', this version reads '1'; use the version of recsys-twostage" in metrics["last_error"]
    with pytest.raises(BundleIncompatible, match="build the bundle again") as caught:
        run(store, data.interactions, data.items, data.users, now=NOW)
    assert exit_code(caught.value) == 69
    watcher.close()
    store.rollback(run_id="back", promoted_at=NOW)
    still_serves(store)


def test_a_record_of_what_is_not_there(store: Store, data: Synthetic, still_serves: Look) -> None:
    """F6: CURRENT is sound, the version that it names is gone."""
    watcher = BundleWatcher(store, device="cpu")
    before = store.current()
    assert before is not None
    gone = replace(before, seq=2, version="20990101T000000Z-0123abcd", previous=before.version)
    (store.root / "CURRENT").write_bytes(gone.to_bytes())
    assert not watcher.poll(NOW)
    assert "holds no version 20990101T000000Z" in watcher.metrics(NOW)["last_error"]
    assert watcher.recommender.recommend(watcher.recommender.users.head(2), 3).height == 6
    watcher.close()
    with pytest.raises(BundleNotFound, match="holds no version 20990101T000000Z-0123abcd; there are: 2026") as caught:
        run(store, data.interactions, data.items, data.users, now=NOW)
    assert exit_code(caught.value) == 69
    with pytest.raises(BundleNotFound, match="holds no version"):
        BundleWatcher(store, device="cpu")
    store.rollback(before.version, run_id="back", promoted_at=NOW)
    still_serves(store)
