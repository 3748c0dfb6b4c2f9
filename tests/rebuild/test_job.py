"""The nightly job, from tables to a live version."""

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import Recommender
from recsys.bundle import seal_bundle
from recsys.cli import exit_code
from recsys.errors import BundleCorrupt, BundleLocked, BundleNotFound, InvalidConfig, InvalidData, PublishRefused
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, init, run, write_metrics
from recsys.rebuild.store import Store
from recsys.schema import Tables, fingerprint, validate
from recsys.synthetic import Synthetic

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def renamed(items: pl.DataFrame, count: int) -> pl.DataFrame:
    changed = pl.int_range(pl.len()) < count
    return items.with_columns(title=pl.when(changed).then(pl.col("title") + " anew").otherwise(pl.col("title")))


EASY = RebuildConfig(gates=GatesConfig(margin=1.0))
quickly = pytest.mark.usefixtures("no_other_process")


def test_only_what_changed_is_encoded_and_the_same_inputs_change_nothing(store: Store, data: Synthetic) -> None:
    first = run(store, data.interactions, renamed(data.items, 3), data.users, now=NOW, config=EASY)
    assert first.outcome == "promoted"
    assert first.counts["encoded"] == 3
    assert first.counts["interactions"] == data.interactions.height
    assert all(gate.passed for gate in first.gates)
    assert [gate.name for gate in first.gates] == ["items", "vectors", "recall", "freshest", "golden", "reopen"]
    current = store.current()
    again = run(store, data.interactions.reverse(), renamed(data.items, 3), data.users, now=NOW, config=EASY)
    assert (again.outcome, again.counts["encoded"], again.version) == ("unchanged", 0, first.version)
    assert store.current() == current
    assert len(store.verify().metadata["gates"]) == 6


@quickly
def test_what_a_dying_run_left_is_pruned_by_one_that_has_nothing_to_do(store: Store, data: Synthetic) -> None:
    for n in range(1, 5):
        run(store, data.interactions, renamed(data.items, n), data.users, now=NOW, config=replace(EASY, keep=9))
    before = store.versions()
    again = (store, data.interactions, renamed(data.items, 4), data.users)
    with store.lock("another"):
        busy = run(*again, now=NOW, config=EASY)
    assert (busy.outcome, busy.pruned, store.versions()) == ("unchanged", (), before)
    idle = run(*again, now=NOW, config=EASY)
    assert (idle.outcome, list(idle.pruned), store.versions()) == ("unchanged", before[:2], before[2:])


@quickly
def test_force_builds_the_same_content_again(store: Store, data: Synthetic) -> None:
    first = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    forced = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY, force=True)
    assert forced.outcome == "promoted"
    assert store.content_hash(forced.version) == store.content_hash(first.version)


@quickly
def test_dropped_and_added_items(store: Store, data: Synthetic) -> None:
    gone, new = data.items["item_id"][0], data.items[:1].with_columns(item_id=pl.lit("zz new"), title=pl.lit("novel"))
    items = pl.concat([data.items[1:], new])
    result = run(store, data.interactions, items, data.users, now=NOW, config=EASY)
    assert (result.counts["added"], result.counts["dropped"]) == (1, 1)
    served = Recommender.load(store.bundle(result.version))
    assert gone not in served.items.to_list()
    assert "zz new" in served.similar_items(["zz new"], 3)["item_id"].to_list()


@quickly
def test_a_failed_gate_keeps_what_is_live_and_the_bundle(store: Store, data: Synthetic) -> None:
    before = store.current()
    half = data.items.head(data.items.height // 2)
    with pytest.raises(PublishRefused, match=r"gate items: 0\.5 is not 0\.8 to 2\.0"):
        run(store, data.interactions, half, data.users, now=NOW)
    assert store.current() == before
    kept = [version for version in store.versions() if before is not None and version != before.version]
    assert len(kept) == 1
    with pytest.raises(PublishRefused, match="gate items") as caught:
        run(store, data.interactions, half, data.users, now=NOW)
    assert "refresh" not in caught.value.result.seconds  # the same tables: refused without building again
    assert (caught.value.result.outcome, caught.value.result.version) == ("refused", kept[0])
    assert [gate.name for gate in caught.value.result.gates if not gate.passed] == ["items"]
    assert store.refused() == kept
    with pytest.raises(PublishRefused, match=r"never was live: its gates refused it \(items\)"):
        store.rollback(kept[0], run_id="back", promoted_at=NOW)
    assert store.current() == before


@quickly
def test_a_refused_version_goes_live_under_other_limits(store: Store, data: Synthetic) -> None:
    half = data.items.head(data.items.height // 2)
    with pytest.raises(PublishRefused, match="gate items"):
        run(store, data.interactions, half, data.users, now=NOW, config=EASY)
    wide = RebuildConfig(gates=GatesConfig(margin=1.0, min_items=0.1))
    result = run(store, data.interactions, half, data.users, now=NOW, config=wide)
    assert (result.outcome, result.counts["items"], store.refused()) == ("promoted", half.height, [])
    assert all(gate.passed for gate in result.gates)
    store.rollback(run_id="back", promoted_at=NOW)
    assert store.rollback(result.version, run_id="forth", promoted_at=NOW).version == result.version


@quickly
def test_refused_versions_do_not_pile_up(store: Store, data: Synthetic) -> None:
    live, strict = store.current(), RebuildConfig(gates=GatesConfig(min_items=1.5), keep=1)
    for n in range(4):
        with pytest.raises(PublishRefused, match="gate items") as caught:
            run(store, data.interactions, renamed(data.items, n), data.users, now=NOW, config=strict)
        assert live is not None
        assert {live.version, caught.value.result.version} <= set(store.versions())
        assert len(store.versions()) <= 3
        assert not list((store.root / "staging").iterdir())


@quickly
def test_a_damaged_version_that_nobody_needs_is_built_anew(store: Store, data: Synthetic) -> None:
    made = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    store.rollback(run_id="back", promoted_at=NOW)
    path = store.bundle(made.version) / "item_vectors.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with store.reading(made.version), pytest.raises(BundleCorrupt, match="item_vectors"):
        run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    again = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    assert (again.outcome, again.version) == ("promoted", made.version)
    store.verify()


@quickly
def test_one_moment_in_two_time_zones_is_one(store: Store, data: Synthetic) -> None:
    moment = datetime(2024, 3, 1, tzinfo=UTC)
    there = moment.astimezone(timezone(timedelta(hours=8)))
    first = run(store, data.interactions, data.items, data.users, now=NOW, as_of=there, config=EASY)
    again = run(store, data.interactions, data.items, data.users, now=NOW, as_of=moment, config=EASY)
    assert (first.outcome, again.outcome, again.version) == ("promoted", "unchanged", first.version)
    with pytest.raises(InvalidConfig, match="as_of 2024-03-01 00:00:00 has no time zone"):
        run(store, data.interactions, data.items, now=NOW, as_of=moment.replace(tzinfo=None), config=EASY)


@quickly
def test_an_unchanged_version_still_says_what_it_holds(store: Store, data: Synthetic) -> None:
    tables = (store, data.interactions, renamed(data.items, 2), data.users)
    made = run(*tables, now=NOW, config=EASY)
    again = run(*tables, now=NOW, config=EASY)
    for name in ("items", "texts", "users", "interactions"):
        assert again.counts[name] == made.counts[name] > 0
    assert (made.counts["encoded"], again.counts["encoded"], again.counts["kept"]) == (2, 0, 0)
    assert again.gates == made.gates


@pytest.mark.parametrize("values", [{"keep": -1}, {"lock_wait": -1.0}, {"lock_wait": float("inf")}])
def test_settings_that_mean_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="must be 0 or more"):
        RebuildConfig(**values)


def test_init_makes_the_first_version_only(store: Store, model: Path, tmp_path: Path) -> None:
    before = store.current()
    assert before is not None
    with pytest.raises(PublishRefused, match=f"has a live version, {before.version}"):
        init(store, model, now=NOW)
    assert store.current() == before
    assert init(store, model, now=NOW + timedelta(days=1), replace=True).previous == before.version


def test_init_refuses_what_is_no_recommender(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text("{}")
    seal_bundle(tmp_path / "folder", {})
    store = Store.create(tmp_path / "store")
    with pytest.raises(BundleCorrupt, match=r"holds no state\.json, so it is no saved recommender") as caught:
        init(store, tmp_path / "folder", now=NOW)
    assert exit_code(caught.value) == 69
    assert store.current() is None
    assert store.versions() == []


@quickly
def test_rolled_back_is_not_promoted_again(store: Store, data: Synthetic) -> None:
    result = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    store.rollback(run_id="rollback", promoted_at=NOW)
    again = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    assert again.outcome == "unchanged"
    assert again.version != result.version


@quickly
def test_what_was_published_before_a_crash_is_promoted_without_building(
    store: Store, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    result = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    assert result.outcome == "promoted"
    assert "refresh" not in result.seconds


@quickly
def test_an_interrupted_run_encodes_nothing_twice(
    store: Store, data: Synthetic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    items = renamed(data.items, 5)
    with monkeypatch.context() as patched:
        patched.setattr("recsys.rebuild.job.write_fitted", killed)
        with pytest.raises(KeyboardInterrupt):
            run(store, data.interactions, items, data.users, now=NOW, config=EASY)
    result = run(store, data.interactions, items, data.users, now=NOW, config=EASY)
    assert result.counts["encoded"] == 0
    other = Store.create(tmp_path / "other")
    init(other, model, now=NOW)
    undisturbed = run(other, data.interactions, items, data.users, now=NOW, config=EASY)
    assert other.content_hash(undisturbed.version) == store.content_hash(result.version)


@quickly
def test_tables_that_lack_what_the_model_knows(store: Store, data: Synthetic) -> None:
    before = store.current()
    with pytest.raises(InvalidData, match="users: is not given, but the model was fitted with it"):
        run(store, data.interactions, data.items, now=NOW)
    other = data.interactions.with_columns(user_id=pl.col("user_id").str.slice(1).cast(pl.Int64))
    users = data.users.with_columns(user_id=pl.col("user_id").str.slice(1).cast(pl.Int64))
    with pytest.raises(InvalidData, match="user_id: is Int64, the model was fitted with String"):
        run(store, other, data.items, users, now=NOW)
    if data.users.width > 1:
        with pytest.raises(InvalidData, match="is missing, the model was fitted with"):
            run(store, data.interactions, data.items, data.users.select("user_id"), now=NOW)
    with pytest.raises(InvalidData, match="no interaction lies before as_of"):
        run(store, data.interactions, data.items, data.users, now=NOW, as_of=NOW - timedelta(days=9999))
    with pytest.raises(InvalidData, match="has no rows"):
        run(store, data.interactions, data.items.clear(), data.users, now=NOW)
    assert store.current() == before


@quickly
def test_what_lies_after_as_of_is_left_out(store: Store, data: Synthetic) -> None:
    last = data.interactions["timestamp"].max()
    future = data.interactions[:3].with_columns(timestamp=pl.lit(last) + pl.duration(days=365))
    told = run(
        store, pl.concat([data.interactions, future]), data.items, data.users,
        now=NOW, as_of=pl.Series([last]).dt.replace_time_zone("UTC")[0] + timedelta(seconds=1), config=EASY,
    )  # fmt: skip
    assert told.counts["late"] == 3


@quickly
def test_a_clock_that_runs_ahead_does_not_move_now(store: Store, data: Synthetic) -> None:
    ahead = data.interactions[:3].with_columns(timestamp=pl.lit(NOW) + pl.duration(days=3650))
    told = run(store, pl.concat([data.interactions, ahead]), data.items, data.users, now=NOW, config=EASY)
    assert (told.counts["late"], told.counts["interactions"]) == (3, data.interactions.height)
    as_of = store.verify().metadata["as_of"]
    assert as_of == pytest.approx(data.interactions["timestamp"].max().timestamp() + 1.0)  # type: ignore[union-attr]
    again = run(store, pl.concat([data.interactions, ahead]), data.items, data.users, now=NOW, config=EASY)
    assert again.outcome == "unchanged"


def test_many_interactions_in_the_future(store: Store, data: Synthetic) -> None:
    before = store.current()
    ahead = data.interactions.with_columns(pl.col("timestamp") + pl.duration(days=3650))
    with pytest.raises(
        InvalidData, match=r"interactions.timestamp: must not lie after now, 2026-03-01.* say with as_of"
    ):
        run(store, pl.concat([data.interactions, ahead]), data.items, data.users, now=NOW)
    assert store.current() == before


def test_a_store_that_another_run_moves_meanwhile(
    store: Store, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **named: Any) -> Tables:
        tables = validate(*arguments, **named)
        live = store.current()
        assert live is not None
        store.rollback(live.version, run_id="another", promoted_at=NOW)
        return tables

    monkeypatch.setattr("recsys.rebuild.job.validate", slow)
    with pytest.raises(BundleLocked, match="got another live version while this run read its tables") as caught:
        run(store, data.interactions, data.items, data.users, now=NOW)
    assert exit_code(caught.value) == 75


def test_a_store_without_a_live_version(tmp_path: Path, data: Synthetic) -> None:
    with pytest.raises(BundleNotFound, match="has no live version yet"):
        run(Store.create(tmp_path / "empty"), data.interactions, data.items, now=NOW)


def test_the_fingerprint_is_of_the_content(data: Synthetic) -> None:
    tables = validate(data.interactions, data.items, data.users)
    same = validate(data.interactions.reverse(), data.items.reverse(), data.users)
    assert fingerprint(tables, None) == fingerprint(same, None)
    assert fingerprint(tables, None) != fingerprint(tables, NOW)
    assert fingerprint(tables, None) != fingerprint(replace(tables, users=None), None)


def test_the_fingerprint_is_the_same_whatever_file_the_tables_come_from(data: Synthetic, tmp_path: Path) -> None:
    """Long ids, nulls and categories lie in memory otherwise when they come from a CSV file or from several parts."""
    gone = pl.when(pl.int_range(pl.len()) % 3 == 0)
    interactions = data.interactions.with_columns(
        item_id="a long prefix of " + pl.col("item_id"), value=gone.then(None).otherwise(pl.int_range(pl.len()) / 4)
    )
    items = data.items.with_columns(
        item_id="a long prefix of " + pl.col("item_id"),
        maker=gone.then(None).otherwise("a maker of a long name " + pl.col("title")),
    )
    interactions.write_csv(tmp_path / "interactions.csv")
    (tmp_path / "parts").mkdir()
    for part in range(3):
        interactions[part::3].write_parquet(tmp_path / "parts" / f"{part}.parquet")
    wanted = fingerprint(validate(interactions, items), None)
    assert fingerprint(validate(tmp_path / "parts", pl.concat([items[:7], items[7:]], rechunk=False)), None) == wanted
    assert fingerprint(validate(tmp_path / "interactions.csv", items.reverse()), None) == wanted
    other = pl.when(pl.int_range(pl.len()) == 5).then(pl.lit(1e9)).otherwise(pl.col("value"))
    assert fingerprint(validate(interactions.with_columns(value=other), items), None) != wanted
    swapped = items.with_columns(title=pl.col("maker").fill_null("x"), maker=pl.col("title"))
    assert fingerprint(validate(interactions, swapped), None) != wanted
    script = (
        "import sys; from recsys.schema import fingerprint, validate;"
        "print(fingerprint(validate(sys.argv[1], sys.argv[2]), None))"
    )
    items.write_parquet(tmp_path / "items.parquet")
    command = [sys.executable, "-c", script, str(tmp_path / "parts"), str(tmp_path / "items.parquet")]
    assert subprocess.check_output(command, text=True, cwd=Path(__file__).parents[2]).strip() == wanted


@quickly
def test_metrics_file(store: Store, data: Synthetic, tmp_path: Path) -> None:
    result = run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    write_metrics(result, tmp_path / "recsys.prom", now=NOW)
    text = (tmp_path / "recsys.prom").read_text()
    assert "recsys_rebuild_promoted 1\n" in text
    assert 'recsys_rebuild_gate{gate="recall"} 1.0' in text
    assert shutil.which("promtool") is None or text.endswith("\n")
