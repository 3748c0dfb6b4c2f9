"""The whole job killed at its steps and at random moments, under readers that load and recommend without pause.

A step is whatever changes the store as others see it: a file opened for writing, a flush, a rename, a removal, a lock.
Between two of them a kill leaves the same as before the second, but for the content of files that nobody reads yet.

Each run is a child of a process that has imported everything, which would take far longer than the run. The steps of
the store alone are killed in `test_crash.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recsys.rebuild.current import Current
from recsys.rebuild.job import init
from recsys.rebuild.store import Store
from recsys.synthetic import Synthetic

SOAK = os.environ.get("RECSYS_SOAK") == "1"
MOST = int(os.environ.get("RECSYS_KILLS", "1000"))  # fewer, to measure how long a kill takes
STEPS = 6  # where it is no soak; a soak walks through all of them
MOMENTS = 100 if SOAK else 3
READERS = 3 if SOAK else 1
ROOT = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork has no threads but its own

WRITER = """
import os, signal, sys, time, traceback
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import sentence_transformers
from recsys import Recommender
from recsys.rebuild import job, refresh
from recsys.rebuild.gates import GateResult, GatesConfig
from recsys.rebuild.store import Store

tables, armed, events, stop = Path(sys.argv[1]), "", 0, 0
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync", "fcntl.flock")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def step(event, arguments):
    global events
    written = event == "open" and arguments[2] & WRITING and str(arguments[0]).startswith(armed)
    if armed and (event in CHANGES or written):
        events += 1
        if events == stop:
            os.kill(os.getpid(), signal.SIGKILL)

fsync = os.fsync
def counted(descriptor):
    step("fsync", ())
    fsync(descriptor)

os.fsync = counted
sys.addaudithook(step)
# Another interpreter for each run would take most of the time; that gate has its own tests.
job.reader_process = nullcontext
job.reopened = lambda *_: GateResult(name="reopen", value=1.0, limit="1.0", passed=True)
config = job.RebuildConfig(gates=GatesConfig(margin=1.0, golden_users=5), keep=2, lock_wait=5.0, device="cpu")

def rebuild(root, number):
    global armed
    interactions, items, users = (pl.read_parquet(tables / f"{n}.parquet") for n in ("interactions", "items", "users"))
    changed = pl.int_range(pl.len()) == number % items.height
    title = pl.when(changed).then(pl.col("title") + f" {number}").otherwise(pl.col("title"))
    armed = root
    done = job.run(
        Store.open(Path(root)), interactions, items.with_columns(title=title), users,
        now=datetime(2026, 3, 1, tzinfo=UTC), config=config,
    )
    armed = ""
    print(events, done.counts["encoded"], flush=True)

print("ready", flush=True)
for line in sys.stdin:
    root, number, stop, after = line.split()
    stop = int(stop)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            rebuild(root, int(number))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if float(after):
        time.sleep(float(after))
        os.kill(child, signal.SIGKILL)  # where it has ended it is not waited for yet, so the number is still its own
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

READER = """
import json, os, sys
from pathlib import Path
from recsys import Recommender
from recsys.errors import BundleNotFound
from recsys.rebuild.store import Store

root, result, people = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
store, loads, last, lists, error = Store.open(root), 0, 0, {}, None
os.nice(3)  # the writer sets the pace, on two cores too
print("ready", flush=True)
try:
    while not (root.parent / "stop").exists():
        current = store.current()
        assert current is not None and current.seq >= last, (current, last)
        last = current.seq
        try:
            with store.reading(current.version) as folder:
                recommender = Recommender.load(folder, device="cpu")
        except BundleNotFound:
            again = store.current()
            assert again is not None and again.seq > current.seq, "what CURRENT names is not there"
            continue
        found = recommender.recommend(people, 5)
        assert found.height == 5 * len(people) and found["score"].is_finite().all(), found
        before = lists.setdefault(current.version, found["item_id"].to_list())
        assert before == found["item_id"].to_list(), "one version, two answers"
        loads += 1
except BaseException as failure:
    error = repr(failure)
result.write_text(json.dumps({"loads": loads, "versions": len(lists), "error": error}))
"""


class Writer:
    """A process that has imported everything and makes a child for each run; the children are what is killed."""

    def __init__(self, tables: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tables)],
            cwd=ROOT, env=ALONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._said() == ["ready"]

    def run(self, root: Path, number: int, *, stop: int = 0, after: float = 0.0) -> tuple[int, int] | None:
        """Events and encoded texts of a whole run; None where it was killed, at event `stop` or `after` seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{root} {number} {stop} {after}\n")
        self.process.stdin.flush()
        told = self._said()
        done = None if told[0] == "exit" else (int(told[0]), int(told[1]))
        code = int((told if done is None else self._said())[1])
        assert code == -signal.SIGKILL or (code == 0 and done is not None), code
        return done

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _said(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


@pytest.mark.timeout(7200)
def test_the_job_killed_under_readers(model: Path, data: Synthetic, tmp_path: Path) -> None:
    rng, now = random.Random(3), datetime(2026, 3, 1, tzinfo=UTC)
    for name in ("interactions", "items", "users"):
        getattr(data, name).write_parquet(tmp_path / f"{name}.parquet")
    calm, store = (Store.create(tmp_path / name) for name in ("calm", "store"))
    for place in (calm, store):
        init(place, model, now=now)
    people = data.interactions["user_id"].unique().sort().head(2).to_list()
    writer, readers, began = Writer(tmp_path), [], time.perf_counter()
    killed, at_steps, number, took = 0, 0, 3, 0.0
    try:
        for place in (calm, store):  # until there is something to prune, as every night
            runs = [writer.run(place.root, n) for n in range(3)]
        events = max(run[0] for run in runs if run is not None)
        left_out = deque(steps(events))
        readers = started_readers(store, tmp_path, people)
        for _ in range(5 * (len(left_out) + MOMENTS)):
            if killed == MOST or (not left_out and killed - at_steps == MOMENTS):
                break
            number, stop, before = number + 1, left_out[0] if left_out else 0, live(store)
            done = writer.run(store.root, number, stop=stop, after=0.0 if stop else rng.uniform(0.01, took))
            left = live(store)
            assert left == before or (left.seq > before.seq and left.previous == before.version), "neither old nor new"
            killed, at_steps = killed + (done is None), at_steps + (done is None and stop > 0)
            if done is None and stop:
                left_out.popleft()
            left_out.rotate(-1)  # a version that a reader holds makes a run shorter: what it lacked comes again
            if done is None:
                assert writer.run(store.root, number) is not None
            whole = time.perf_counter()
            assert writer.run(calm.root, number) is not None
            took = time.perf_counter() - whole
            assert same(calm, store)
            assert len(store.versions()) <= 4 + READERS  # each may hold one
            # Whoever dies while he removes old versions leaves them to the next night.
            begun = [path.name for path in (store.root / "staging").iterdir()]
            assert not begun or (left.seq > before.seq and all(name.startswith("pruned-") for name in begun)), begun
    finally:
        (tmp_path / "stop").touch()
        writer.close()
        for reader in readers:
            reader.communicate(timeout=120)
    results = [json.loads((tmp_path / f"reader-{n}").read_text()) for n in range(READERS)]
    seconds = time.perf_counter() - began
    print(
        f"{killed} kills of the job, {at_steps} of them at its {events} steps, in {seconds:.0f} s; readers: {results}"
    )
    assert killed == min(MOST, len(steps(events)) + MOMENTS)
    assert killed == MOST or not left_out
    assert killed >= min(MOST, 300) or not SOAK
    assert all(result["error"] is None and result["loads"] > 0 for result in results), results


def started_readers(store: Store, folder: Path, people: list[str]) -> list[subprocess.Popen[bytes]]:
    """Processes that load and recommend; all of them are at it."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(store.root), str(folder / f"reader-{n}"), json.dumps(people)],
            cwd=ROOT, env=ALONE, stdout=subprocess.PIPE,
        )
        for n in range(READERS)
    ]  # fmt: skip
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"ready\n"
    return readers


def steps(events: int) -> list[int]:
    """Numbers of the steps to kill at: all of them in a soak, else some from the first to the last."""
    return list(range(1, events + 1)) if SOAK else [1 + round(n * (events - 1) / (STEPS - 1)) for n in range(STEPS)]


def live(store: Store) -> Current:
    """What is live, every byte of it checked."""
    store.verify()
    current = store.current()
    assert current is not None
    return current


def same(calm: Store, store: Store) -> bool:
    """Whether both end with the same version and content."""
    versions = [live(place).version for place in (calm, store)]
    return versions[0] == versions[1] and calm.content_hash(versions[0]) == store.content_hash(versions[1])
