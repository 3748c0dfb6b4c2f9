"""The whole line: data set -> cuts -> systems -> numbers -> results folder.

prepared = prepare(dataset, config)
answers, notes = ask(prepared, ["popular", "two-stage"])
measured = measure(prepared, answers, notes=notes)
write(measured, Path("results"))
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from recsys.bench.measure import N_SAMPLES, Measured, measure
from recsys.bench.outside import read_lists
from recsys.bench.protocols import KS, Repeats, prepare
from recsys.bench.result import FRAMES, REPORT, RESULT, BenchResult, as_json
from recsys.bench.systems import DEFAULT, Answers, Systems, ask
from recsys.bench.tracking import Tracker, check_tracker, track
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, PublishRefused
from recsys.splits import SplitKind

LOGS = "logs"


def run_bench(
    dataset: Dataset,
    config: RecommenderConfig | None = None,
    *,
    systems: Systems = DEFAULT,
    split: SplitKind = "time",
    test_share: float = 0.1,
    min_items: int = 5,
    n_cuts: int = 3,
    repeats: Repeats = "auto",
    k: int = 10,
    ks: Sequence[int] = KS,
    segments: Sequence[str] = (),
    n_samples: int = N_SAMPLES,
    reference: str | None = None,
    out: str | Path | None = None,
    tracker: Tracker | None = None,
    lists: Sequence[str | Path] = (),
    progress: bool = False,
) -> BenchResult:
    """Fit the systems on each cut and measure them under each protocol.

    Args:
        dataset: the tables.
        config: of our system.
        systems: names (see `recsys-bench run --help`), or a mapping of names to anything with
            `fit(interactions, items, as_of=)` and `recommend(users, k, filter_seen=)`, or to names.
        split: see `prepare`, as are the next five.
        test_share: share of the interactions to test on.
        min_items: distinct items of a test user, for "leave-last-out".
        n_cuts: for "rolling".
        repeats: whether repeated pairs count.
        k: main length of the lists.
        ks: further lengths.
        segments: columns of items and users to report by.
        n_samples: of the bootstrap.
        reference: the system that every other one is compared with; by default both stages are, where they are there.
        out: results folder to write, its parents are made where absent; an older one is replaced. The logs of our
            trainings go to its sub-folder `logs`, where the configuration names no other, beside those of earlier runs.
        tracker: where the numbers go besides: "tensorboard" (into `logs` too), "wandb" or "mlflow".
        lists: files of lists that other programs made for the same split, see `recsys/bench/outside.py`; their systems
            stand beside ours.
        progress: show bars on stderr.

    Raises:
        InvalidData: a table or a file of lists breaks a rule, or there is nothing to test.
        InvalidConfig: a value is out of its range, the reference is no system, or the tracker is not installed.
        DeviceUnavailable: the configured device is not there.
        PublishRefused: the folder holds something else.
        OSError: the folder's parents cannot be made.
    """
    logs = None if out is None else Path(out) / LOGS
    if out is not None:
        refuse_foreign(Path(out))
        Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
    if tracker is not None:
        check_tracker(tracker, logs)
    if n_samples < 1:
        raise InvalidConfig(f"n_samples={n_samples} must be at least 1")
    if not systems and not lists:
        raise InvalidConfig("there is no system to measure; name one, or give a file of lists")
    if reference is not None and reference not in systems:
        raise InvalidConfig(f"reference {reference!r} is none of the systems {', '.join(systems)}")
    prepared = prepare(
        dataset, config,
        split=split, test_share=test_share, min_items=min_items, n_cuts=n_cuts, repeats=repeats, k=k, ks=ks,
        segments=segments, progress=progress,
    )  # fmt: skip
    others: list[Answers] = []
    for path in lists:  # before the fits, so that a fault in a file is told at once
        others += read_lists(path, prepared, [*systems, *(answer.system for answer in others)])
    answers, notes = ask(prepared, systems, log_folder=logs)
    answers += others
    measured = measure(prepared, answers, notes=notes, n_samples=n_samples, reference=reference)
    if out is not None:
        write(measured, Path(out))
    if tracker is not None:
        track(measured.result, tracker, logs)
    return measured.result


def write(measured: Measured, folder: Path) -> None:
    """Write a results folder beside its place and rename it; an older one is replaced, but for its logs.

    Raises:
        PublishRefused: the folder holds something else.
    """
    refuse_foreign(folder)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    beside.mkdir()
    try:
        for name in FRAMES:
            measured.frames[name].write_parquet(beside / f"{name}.parquet")
        (beside / RESULT).write_text(as_json(measured.result.to_dict()), encoding="utf-8")
        if folder.exists():
            older = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            folder.rename(older)
            beside.rename(folder)
            if (older / LOGS).is_dir():
                (older / LOGS).rename(folder / LOGS)
            shutil.rmtree(older)
        else:
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refuse_foreign(folder: Path) -> None:
    """Only an empty folder or older results may be replaced.

    Raises:
        PublishRefused: it is a file, or holds something else.
    """
    others = {path.name for path in folder.iterdir()} - {LOGS} if folder.is_dir() else set()
    if folder.is_file() or (others and RESULT not in others):
        raise PublishRefused(f"{folder} exists and holds no results; give another folder or remove it")
    foreign = sorted(others - {RESULT, REPORT, *(f"{name}.parquet" for name in FRAMES)})
    if foreign:
        raise PublishRefused(f"{folder} holds {foreign[0]} beside results; move it, or give another folder")
