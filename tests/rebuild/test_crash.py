"""A writer killed at every step and at random moments, under readers that never stop."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recsys.rebuild.current import Current
from recsys.rebuild.store import Store

SOAK = os.environ.get("RECSYS_SOAK") == "1"
KILLS = 320 if SOAK else 20
ROOT = Path(__file__).parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)

WRITER = """
import os, signal, sys
from datetime import datetime, timedelta, UTC
from pathlib import Path
from recsys.rebuild.store import Store

root, number, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
run_id, at = f"run-{number}", datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)
events = 0

def step(event, arguments):
    global events
    if armed and (event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync", "fcntl.flock")
                  or event == "open" and str(arguments[0]).startswith(str(root))):
        events += 1
        if events == stop:
            os.kill(os.getpid(), signal.SIGKILL)

fsync = os.fsync
def counted(descriptor):
    step("fsync", ())
    fsync(descriptor)

armed = False
os.fsync = counted
sys.addaudithook(step)
store = Store.open(root)
print("ready", flush=True)
armed = True
with store.lock(run_id, wait=5.0):
    version = store.published(run_id)
    if version is None:
        staging = store.stage(run_id)
        for part in ("a.txt", "b.json", "deep/c.npy"):
            path = staging / part
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as stream:
                for row in range(20):
                    stream.write(f"{number}\\n".encode() * 50)
                    stream.flush()
        version = store.publish(run_id, {"number": number}, as_of_stamp=at)
    store.promote(version, run_id=run_id, reason="test", promoted_at=at)
    store.prune(keep=2)
armed = False
print(events, flush=True)
"""

READER = """
import json, sys, time
from pathlib import Path
from recsys.errors import BundleNotFound
from recsys.rebuild.store import Store

root, result, count, seqs, missed = Path(sys.argv[1]), Path(sys.argv[2]), 0, set(), 0
store, last = Store.open(root), 0
print("ready", flush=True)
try:
    while not (root.parent / "stop").exists():
        current = store.current()
        assert current is not None and current.seq >= last, (current, last)
        last = current.seq
        try:
            with store.reading(current.version) as folder:
                manifest = store.verify(current.version)
                parts = {(folder / name).read_text() for name in manifest.files}
                assert parts == {f"{manifest.metadata['number']}\\n" * 1000}, "mixed"
        except BundleNotFound:
            again = store.current()
            assert again is not None and again.seq > current.seq, "what CURRENT names is not there"
            missed += 1
            continue
        time.sleep(0.003)
        count += 1
        seqs.add(current.seq)
    result.write_text(json.dumps({"reads": count, "seqs": len(seqs), "missed": missed, "error": None}))
except BaseException as error:
    result.write_text(json.dumps({"reads": count, "seqs": len(seqs), "error": repr(error)}))
    raise
"""


def write(root: Path, number: int, stop: int = 0, after: float | None = None) -> int | None:
    """Events of a whole run, or None where it was killed: before event `stop`, or `after` seconds of work."""
    command = [sys.executable, "-c", WRITER, str(root), str(number), str(stop)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        if after is not None:
            time.sleep(after)
            writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read()
        code = writer.wait(timeout=60)
    assert code in (0, -signal.SIGKILL), code
    return int(told) if code == 0 else None


def content(store: Store) -> tuple[Current, str]:
    current = store.current()
    assert current is not None
    store.verify()
    return current, store.content_hash(current.version)


@pytest.mark.timeout(1800)
def test_killed_writers_under_readers(tmp_path: Path) -> None:
    rng = random.Random(7)
    calm = Store.create(tmp_path / "calm")
    root = tmp_path / "store"
    store = Store.create(root)
    began = time.perf_counter()
    for place in (calm.root, root):
        for number in range(4):
            events = write(place, number)
    assert events is not None
    assert events > 40
    took = (time.perf_counter() - began) / 8
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(root), str(tmp_path / f"reader-{n}")], cwd=ROOT)
        for n in range(3)
    ]
    # Every step in a soak, evenly spread ones otherwise; then random moments.
    steps = (
        list(range(1, events + 1)) if SOAK else [1 + round(x * (events - 1) / (KILLS - 6)) for x in range(KILLS - 5)]
    )
    killed, number = 0, 4
    try:
        for turn in range(10 * KILLS):
            if killed >= KILLS:
                break
            before, _ = content(store)
            if turn < len(steps):
                done = write(root, number, stop=steps[turn])
            else:
                done = write(root, number, after=rng.uniform(0, took / 4))
            killed += done is None
            left, _ = content(store)
            assert left.version == before.version or left.run_id == f"run-{number}", "neither old nor new"
            for name in store.versions():
                store.verify(name)
            if done is None:
                assert write(root, number) is not None
            assert write(calm.root, number) is not None
            now, found = content(store)
            calm_now, expected = content(calm)
            assert (now.version, found) == (calm_now.version, expected)
            assert now.run_id == f"run-{number}"
            assert now.seq > before.seq
            assert not any((root / "staging").iterdir())
            number += 1
    finally:
        (tmp_path / "stop").touch()
        for reader in readers:
            reader.wait(timeout=30)
    results = [json.loads((tmp_path / f"reader-{n}").read_text()) for n in range(3)]
    print(f"{killed} kills in {turn} turns, {events} steps a run, readers: {results}")
    assert killed >= KILLS
    assert all(result["error"] is None and result["reads"] > 10 and result["seqs"] > 3 for result in results), results
