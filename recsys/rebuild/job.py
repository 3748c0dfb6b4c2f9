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
from recsys.errors import BundleCorrupt, BundleLocked, BundleNotFound, InvalidData
from recsys.fitted import Fitted, read_fitted, read_state, write_fitted
from recsys.rebuild.current import Current, utc
from recsys.rebuild.gates import (
    GateResult,
    GatesConfig,
    from_json,
    golden_lists,
    golden_users,
    judge,
    refuse_failed,
    reopened,
    to_json,
)
from recsys.rebuild.object_store import ObjectStore
from recsys.rebuild.refresh import Counts, as_json, check_parts, refresh
from recsys.rebuild.reopen import lists_from, reader_process
from recsys.rebuild.store import Store
from recsys.schema import Table, Tables, validate
from recsys.splits import end_of

FEW_IN_FUTURE = 10  # or this share of the interactions: a wrong clock somewhere; more is a wrong time zone or unit
FUTURE_SHARE = 0.01
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """What a run did.

    Attributes:
        outcome: "promoted", or "unchanged" where the live version was made from the same inputs.
        version: what is live now.
        run_id: names the step log.
        counts: see `Counts`; zeros where nothing was done.
        gates: results by gate.
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


def init(store: AnyStore, model: Path, *, now: datetime) -> Current:
    """Make a folder that `Recommender.save` wrote the live version.

    Raises:
        BundleNotFound, BundleCorrupt, BundleIncompatible: the folder is no sound save.
    """
    manifest = open_bundle(model)
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
        as_of = as_of or before_future(tables.interactions, utc(now, "now"))
        inputs = fingerprint(tables, as_of)
    run_id = f"run-{hashlib.sha256(f'{inputs} {current.version}'.encode()).hexdigest()[:16]}"
    if not force and _needless(store, current, manifest, inputs):
        return _unchanged(store, current, run_id, config, clock)
    with store.lock(run_id, wait=config.lock_wait):
        if store.current() != current:
            raise BundleLocked(f"{store.root} got another live version while this run read its tables; run it again.")
        version, counts, results = _build(
            store, run_id, folder, state, settings, tables, inputs, current, manifest, as_of, config, device, clock
        )
        refuse_failed(results, version)
        with clock.step("promote"):
            promoted = store.promote(version, run_id=run_id, reason="rebuild", promoted_at=now)
            store.append_step(run_id, "promote", version=version, seq=promoted.seq)
        with clock.step("prune"):
            pruned = store.prune(keep=config.keep)
    return RebuildResult(
        outcome="promoted", version=version, run_id=run_id, counts=counts, gates=tuple(results),
        seconds=clock.seconds, pruned=tuple(pruned),
    )  # fmt: skip


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


def _unchanged(store: AnyStore, current: Current, run_id: str, config: RebuildConfig, clock: Clock) -> RebuildResult:
    """Nothing is built; what a run that died while it pruned has left goes now, unless another writer is at work."""
    pruned: list[str] = []
    with clock.step("prune"), suppress(BundleLocked), store.lock(run_id):
        pruned = store.prune(keep=config.keep)
    nothing = dict.fromkeys(Counts.__dataclass_fields__, 0)
    return RebuildResult(
        outcome="unchanged", version=current.version, run_id=run_id, counts=nothing, gates=(),
        seconds=clock.seconds, pruned=tuple(pruned),
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
    done = store.published(run_id)
    if done is not None:
        metadata = store.verify(done).metadata
        return done, metadata["counts"], from_json(metadata["gates"])
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
    with clock.step("publish"):
        stamp = datetime.fromtimestamp(made.fitted.as_of, UTC)
        version = store.publish(run_id, {**metadata, "gates": to_json(results)}, as_of_stamp=stamp)
    return version, counts, results


def _parent(folder: Path, state: dict[str, Any], settings: RecommenderConfig, device: str, encoder: object) -> Fitted:
    """The live version; it was verified, so what does not open was written so."""
    from lightgbm.basic import LightGBMError
    from safetensors import SafetensorError

    readers = (LightGBMError, SafetensorError, pl.exceptions.PolarsError, MemoryError)  # MemoryError: sizes in headers
    try:
        parent = read_fitted(folder, state, settings, device)
    except (ValueError, LookupError, TypeError, RuntimeError, *readers) as error:
        raise BundleCorrupt(f"{folder} is as it was written, but does not open: {error}; roll it back.") from error
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


def fingerprint(tables: Tables, as_of: datetime | None) -> str:
    """sha256 (64 hex digits) of the tables' content in canonical form, and of `as_of`; row order does not matter.

    Rows are hashed by their values: how they lie in memory depends on the file that they came from.
    """
    digest = hashlib.sha256(str(as_of).encode())
    for frame in (tables.interactions, tables.items, tables.users):
        if frame is not None:
            digest.update(repr(frame.schema).encode())
            digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def write_metrics(result: RebuildResult, path: Path, *, now: datetime) -> None:
    """Write the run's figures as a Prometheus text file, whole, for a node exporter's folder."""
    lines = [f"recsys_rebuild_last_success_timestamp_seconds {now.timestamp():.0f}"]
    lines += [f"recsys_rebuild_promoted {int(result.outcome == 'promoted')}"]
    lines += [f'recsys_rebuild_count{{what="{name}"}} {value}' for name, value in result.counts.items()]
    lines += [f'recsys_rebuild_seconds{{step="{name}"}} {value:.6f}' for name, value in result.seconds.items()]
    for gate in result.gates:
        if gate.value is not None:
            lines.append(f'recsys_rebuild_gate{{gate="{gate.name}"}} {gate.value}')
    replace_file(path.absolute(), ("\n".join(lines) + "\n").encode())
