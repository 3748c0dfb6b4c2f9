"""The nightly job as a straight line: read, compare, refresh, judge, publish, promote, prune.

Owns the order of the steps, what an input's fingerprint is, and what a run reports. What a refresh does is
`refresh.py`, what is good enough `gates.py`, where it lies `store.py`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from indexing.embedding_cache import EmbeddingCache
from recsys.bundle import Manifest, open_bundle, replace_file, seal_bundle
from recsys.config import RecommenderConfig, config_from_dict
from recsys.device import resolve_device
from recsys.errors import BundleCorrupt, BundleLocked, BundleNotFound, InvalidConfig, InvalidData, PublishRefused
from recsys.fitted import Fitted, read_fitted, read_state, write_fitted
from recsys.rebuild.current import Current, check_contents, utc
from recsys.rebuild.features import check_answers
from recsys.rebuild.gates import (
    GateResult,
    GatesConfig,
    from_json,
    golden_lists,
    golden_users,
    judge,
    refusal,
    reopened,
    to_json,
)
from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.refresh import Counts, as_json, check_parts, refresh
from recsys.rebuild.reopen import lists_from, reader_process
from recsys.rebuild.store import Store
from recsys.recommender import Recommender
from recsys.schema import Table, Tables, fingerprint, validate
from recsys.splits import end_of

FEW_IN_FUTURE = 10  # or this share of the interactions: a wrong clock somewhere; more is a wrong time zone or unit
FUTURE_SHARE = 0.01
STANDING = ("items", "texts", "users", "interactions", "late")  # counts of what a version holds, not of what was done
LAST_SUCCESS = "recsys_rebuild_last_success_timestamp_seconds"
AnyStore = Store | ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildConfig:
    """How a rebuild runs.

    Attributes:
        gates: what the new bundle must be.
        keep: newest versions that pruning leaves.
        device: "auto", "cpu", "cuda" or "cuda:N".
        lock_wait: seconds to wait for another writer.
        progress: show bars on stderr.
    """

    gates: GatesConfig = field(default_factory=GatesConfig)
    keep: int = 3
    device: str = "auto"
    lock_wait: float = 0.0
    progress: bool = False

    def __post_init__(self) -> None:
        if self.keep < 0 or not 0.0 <= self.lock_wait < float("inf"):
            raise InvalidConfig(f"keep={self.keep} and lock_wait={self.lock_wait} must be 0 or more, and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """What a run did.

    Attributes:
        outcome: "promoted", "unchanged" where the live version was made from the same inputs, or "refused".
        version: what is live now; of a run that was refused, what it built.
        run_id: names the step log.
        counts: see `Counts`; of an unchanged version what it holds, and zeros for what was not done.
        gates: results by gate; of an unchanged version those that it passed.
        seconds: wall time by step.
        pruned: versions removed.
    """

    outcome: str
    version: str
    run_id: str
    counts: Mapping[str, int]
    gates: tuple[GateResult, ...]
    seconds: Mapping[str, float]
    pruned: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "gates": to_json(self.gates)}


class Clock:
    """Wall time of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def init(store: AnyStore, model: Path, *, now: datetime, replace: bool = False) -> Current:
    """Make a folder that `Recommender.save` wrote the live version, once it has opened and answered.

    Args:
        store: without a live version.
        model: the folder.
        now: aware, for the record of the promotion.
        replace: whether the store may have one, which this model then follows. No gate compares the two.

    Raises:
        BundleNotFound, BundleCorrupt, BundleIncompatible: the folder is no sound save, or does not answer.
        PublishRefused: something is live, and `replace` is not set.
    """
    if (current := store.current()) is not None and not replace:
        raise PublishRefused(
            f"{store.root} has a live version, {current.version}. recsys-rebuild run brings it up to date; init "
            "--replace puts another model in its place without comparing them, and rollback takes that back."
        )
    manifest = open_bundle(model)
    check_contents(manifest.files, model)
    _check_opens(model, manifest)
    run_id = f"init-{hashlib.sha256(json.dumps(asdict(manifest), sort_keys=True).encode()).hexdigest()[:16]}"
    with store.lock(run_id):
        staging = _emptied(store.stage(run_id))
        shutil.copytree(model, staging, dirs_exist_ok=True)
        (staging / "MANIFEST.json").unlink()
        version = store.publish(run_id, {**manifest.metadata, "inputs": None}, as_of_stamp=now)
        return store.promote(version, run_id=run_id, reason="init", promoted_at=now)


def run(
    store: AnyStore,
    interactions: Table,
    items: Table,
    users: Table | None = None,
    *,
    now: datetime,
    as_of: datetime | None = None,
    config: RebuildConfig | None = None,
    force: bool = False,
) -> RebuildResult:
    """Bring the live version up to date with fresh tables; nothing is trained.

    Args:
        store: with a live version.
        interactions: everything that shall be known, not what is new alone.
        items: the whole catalogue; an item that is not there is dropped.
        users: where the model was fitted with such a table.
        now: aware, for the record of the promotion; the content depends on it only where interactions lie after it.
        as_of: exclusive end of what is known; by default one second after the last interaction that is not in the
            future.
        config: limits and pruning.
        force: rebuild even where the live version was made from the same inputs. The gates hold all the same.

    Raises:
        InvalidData: a table breaks a rule, or lacks what the model was fitted with, or many interactions lie in the
            future.
        PublishRefused: a gate failed; the bundle is kept and what was live stays so.
        BundleNotFound, BundleCorrupt, BundleLocked: the store has no live version, is damaged, or is being written.
    """
    config, clock = config or RebuildConfig(), Clock()
    device = resolve_device(config.device)
    current, manifest = _live(store, clock)
    folder = store.bundle(current.version)
    state = read_state(folder)
    settings = config_from_dict({**state["config"], "progress": config.progress})
    with clock.step("read"):
        tables = validate(interactions, items, users, unknown_items=settings.unknown_items)
        now = utc(now, "now")
        as_of = before_future(tables.interactions, now) if as_of is None else utc(as_of, "as_of")
        inputs = fingerprint(tables, as_of)
    run_id = f"run-{hashlib.sha256(f'{inputs} {current.version} {config.gates}'.encode()).hexdigest()[:16]}"
    if not force and _needless(store, current, manifest, inputs):
        return _unchanged(store, current, manifest, run_id, config, clock)
    with store.lock(run_id, wait=config.lock_wait):
        if store.current() != current:
            raise BundleLocked(f"{store.root} got another live version while this run read its tables; run it again.")
        version, counts, results = _build(
            store, run_id, folder, state, settings, tables, inputs, current, manifest, as_of, config, device, clock
        )
        refused = refusal(results, version)
        if refused is None:
            with clock.step("promote"):
                promoted = store.promote(version, run_id=run_id, reason="rebuild", promoted_at=now)
                store.append_step(run_id, "promote", version=version, seq=promoted.seq)
        with clock.step("prune"):
            pruned = store.prune(keep=config.keep, pinned=[version])
    result = RebuildResult(
        outcome="promoted" if refused is None else "refused", version=version, run_id=run_id, counts=counts,
        gates=tuple(results), seconds=clock.seconds, pruned=tuple(pruned),
    )  # fmt: skip
    if refused is not None:
        refused.result = result
        raise refused
    return result


def before_future(interactions: pl.DataFrame, now: datetime) -> datetime | None:
    """The exclusive end of what is known where interactions lie after `now`; None where none does.

    Raises:
        InvalidData: more than a few do.
    """
    past = interactions.filter(pl.col("timestamp") <= now)
    late = interactions.height - past.height
    if late > max(FEW_IN_FUTURE, FUTURE_SHARE * interactions.height):
        raise InvalidData(
            table="interactions", column="timestamp", rule=f"must not lie after now, {now}",
            count=late, total=interactions.height,
            remedy="check time zone and unit of the timestamps and the clock, or say with as_of what is known",
        )  # fmt: skip
    return end_of(past) if late else None


def _live(store: AnyStore, clock: Clock) -> tuple[Current, Manifest]:
    current = store.current()
    if current is None:
        raise BundleNotFound(f"{store.root} has no live version yet; recsys-rebuild init makes the first.")
    with clock.step("verify"):
        return current, store.verify()


def _needless(store: AnyStore, current: Current, manifest: Manifest, inputs: str) -> bool:
    """Whether the live version was made from these inputs, or was gone back to from a version that was."""
    if manifest.metadata.get("inputs") == inputs:
        return True
    if not current.reason.startswith("rollback") or current.previous is None:
        return False
    try:
        return bool(store.verify(current.previous).metadata.get("inputs") == inputs)
    except (BundleNotFound, BundleCorrupt):
        return False


def _unchanged(
    store: AnyStore, current: Current, manifest: Manifest, run_id: str, config: RebuildConfig, clock: Clock
) -> RebuildResult:
    """Nothing is built; what a run that died while it pruned has left goes now, unless another writer is at work."""
    pruned: list[str] = []
    with clock.step("prune"), suppress(BundleLocked), store.lock(run_id):
        pruned = store.prune(keep=config.keep)
    facts = manifest.metadata
    known = facts.get("counts", {name: facts.get(name, 0) for name in ("items", "interactions")})
    counts = {name: known.get(name, 0) if name in STANDING else 0 for name in Counts.__dataclass_fields__}
    return RebuildResult(
        outcome="unchanged", version=current.version, run_id=run_id, counts=counts,
        gates=tuple(from_json(facts.get("gates", []))), seconds=clock.seconds, pruned=tuple(pruned),
    )  # fmt: skip


def _build(
    store: AnyStore,
    run_id: str,
    folder: Path,
    state: dict[str, Any],
    settings: RecommenderConfig,
    tables: Tables,
    inputs: str,
    current: Current,
    manifest: Manifest,
    as_of: datetime | None,
    config: RebuildConfig,
    device: str,
    clock: Clock,
) -> tuple[str, Mapping[str, int], list[GateResult]]:
    """Publish a version, not live yet; one that this run published before it was interrupted is taken as it is."""
    done = _done(store, run_id)
    if done is not None:
        return done
    with ThreadPoolExecutor(1) as pool, reader_process() as reader:
        with clock.step("load"):
            parent = _parent(folder, state, settings, device, manifest.metadata.get("encoder"))
            cache = _cache(store, parent)
        store.append_step(run_id, "start", parent=current.version, inputs=inputs)
        with clock.step("refresh"):
            made = refresh(parent, tables, settings, device=device, as_of=as_of, cache=cache)
        counts = as_json(made.counts)
        store.append_step(run_id, "refresh", **counts)
        with clock.step("write"):
            staging = _emptied(store.stage(run_id))
            facts = write_fitted(made.fitted, config_from_dict(state["config"]), staging)
            metadata = {**facts, "inputs": inputs, "parent": current.version, "counts": counts}
            seal_bundle(staging, metadata)
        with clock.step("gates"):
            people, limits = golden_users(made.fitted, config.gates), config.gates
            # The other process opens the folder meanwhile.
            asked = pool.submit(lists_from, reader, staging, people, limits.k, seconds=limits.reopen_seconds)
            lists = golden_lists(made.fitted, settings, limits)
            results = judge(made.fitted, parent, lists, tables, settings, limits, device)
        with clock.step("reopen"):
            results.append(reopened(lists, asked, people))
        store.append_step(run_id, "gates", results=to_json(results))
    with clock.step("publish"):
        stamp = datetime.fromtimestamp(made.fitted.as_of, UTC)
        version = store.publish(run_id, {**metadata, "gates": to_json(results)}, as_of_stamp=stamp)
    return version, counts, results


def _done(store: AnyStore, run_id: str) -> tuple[str, Mapping[str, int], list[GateResult]] | None:
    """What this run has judged and published; None where that is to be made, or has been damaged since."""
    version = store.published(run_id)
    judged = [entry["results"] for entry in store.steps(run_id) if entry["step"] == "gates"]
    if version is None or not judged:
        return None
    try:
        return version, store.verify(version).metadata["counts"], from_json(judged[-1])
    except BundleCorrupt:
        return None


def _check_opens(model: Path, manifest: Manifest) -> None:
    """Refuse a sealed folder that is no whole recommender, or one that does not answer."""
    state = read_state(model)
    settings = config_from_dict({**state["config"], "progress": False})
    fitted = _parent(model, state, settings, resolve_device("auto"), manifest.metadata.get("encoder"))
    check_answers(Recommender.of(fitted, settings), str(model))


def _parent(folder: Path, state: dict[str, Any], settings: RecommenderConfig, device: str, encoder: object) -> Fitted:
    """A version that was verified, so what does not open was written so."""
    from lightgbm.basic import LightGBMError
    from safetensors import SafetensorError

    readers = (LightGBMError, SafetensorError, pl.exceptions.PolarsError, MemoryError)  # MemoryError: sizes in headers
    try:
        parent = read_fitted(folder, state, settings, device)
    except (ValueError, LookupError, TypeError, RuntimeError, *readers) as error:
        raise BundleCorrupt(f"{folder} is as it was written, but does not open: {error}; use another.") from error
    check_parts(parent, encoder)
    return parent


def _cache(store: AnyStore, parent: Fitted) -> EmbeddingCache:
    try:
        return EmbeddingCache(store.root / "embeddings", parent.towers.encoder.fingerprint())
    except RuntimeError as error:
        raise BundleCorrupt(str(error)) from error


def _emptied(staging: Path) -> Path:
    for path in staging.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return staging


def write_metrics(result: RebuildResult, path: Path, *, now: datetime) -> None:
    """Write the run's figures as a Prometheus text file, whole, for a node exporter's folder.

    A run that was refused is no success: the moment of the last one stays as the file says.
    """
    lines = [f"{LAST_SUCCESS} {now.timestamp():.0f}"]
    if result.outcome == "refused":
        before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [line for line in before if line.startswith(LAST_SUCCESS)]
    lines += [f"recsys_rebuild_promoted {int(result.outcome == 'promoted')}"]
    lines += [f'recsys_rebuild_count{{what="{name}"}} {value}' for name, value in result.counts.items()]
    lines += [f'recsys_rebuild_seconds{{step="{name}"}} {value:.6f}' for name, value in result.seconds.items()]
    for gate in result.gates:
        if gate.value is not None:
            lines.append(f'recsys_rebuild_gate{{gate="{gate.name}"}} {gate.value}')
    replace_file(path.absolute(), ("\n".join(lines) + "\n").encode())
