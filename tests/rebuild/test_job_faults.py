"""What can be wrong with tables, with the live version and with a model that is offered.

Each fault has its named error, and what is live goes on serving.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from indexing.encoder import BiEncoder
from indexing.sparse import load_csr, save_csr
from recsys import Recommender
from recsys.bundle import MANIFEST, sealed_bytes, unsealed
from recsys.cli import exit_code
from recsys.errors import BundleCorrupt, BundleIncompatible, InvalidData, PublishRefused, RecsysError
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, init, run
from recsys.rebuild.refresh import Refreshed, refresh
from recsys.rebuild.store import Store
from recsys.synthetic import Synthetic

pytestmark = pytest.mark.usefixtures("no_other_process")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EASY = RebuildConfig(gates=GatesConfig(margin=1.0))
Look = Callable[[Store], None]
Refused = Callable[..., RecsysError]
PutLive = Callable[[Store, Path], str]
Reseal = Callable[[Callable[[Path], object]], Path]


@pytest.fixture
def refused(store: Store, data: Synthetic, still_serves: Look) -> Refused:
    """The error of a run, which leaves what is live."""

    def look(kind: type[RecsysError], message: str, items: Any = None, **tables: Any) -> RecsysError:
        before = store.current()
        with pytest.raises(kind, match=message) as caught:
            run(
                store, tables.pop("interactions", data.interactions), data.items if items is None else items,
                data.users, now=NOW, **tables,
            )  # fmt: skip
        assert store.current() == before
        still_serves(store)
        return caught.value

    return look


def narrower(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        vectors = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", np.ascontiguousarray(vectors[:, :-8]))

    return change


def shorter(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[:-3])

    return change


def another_encoder(folder: Path) -> None:
    path = next(iter(sorted((folder / "encoder").rglob("*.safetensors"))))
    weights = load_file(path)
    save_file({name: value * np.float32(1.5) for name, value in weights.items()}, path, metadata={"format": "pt"})


def fewer_neighbours(folder: Path) -> None:
    matrix = load_csr(folder / "covisitation.safetensors")
    save_csr(matrix[:-3, :-3].tocsr(), folder / "covisitation.safetensors")


def other_items(folder: Path) -> None:
    events = pl.read_parquet(folder / "histories.parquet")
    events.with_columns(pl.col("item_row") + 1000).write_parquet(folder / "histories.parquet")


def an_earlier_moment(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "as_of": state["as_of"] - 1e6}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrower("text_vectors"), r"text_vectors is \(\d+, 56\), its other parts need \(\d+, 64\)"),
        (shorter("text_vectors"), "text_vectors|does not open"),
        (shorter("item_vectors"), "item_vectors|does not open"),
        (shorter("searchable"), "searchable|does not open"),
        (fewer_neighbours, r"covisitation is \(\d+, \d+\), its other parts need"),
        (other_items, r"histories is 10\d+, its other parts need"),
        (an_earlier_moment, r"as_of is [\d.]+, its other parts need"),
        (another_encoder, "the version's encoder is [0-9a-f]+, its other parts need [0-9a-f]+"),
    ],
    ids=["dimension", "texts", "items", "mask", "neighbours", "histories", "moment", "encoder"],
)
def test_parts_that_are_not_of_one_piece(
    model: Path,
    data: Synthetic,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
    still_serves: Look,
    resealed: Reseal,
    put_live: PutLive,
) -> None:
    store = Store.create(tmp_path / "store")
    init(store, model, now=NOW)
    broken = resealed(change)
    with pytest.raises(BundleCorrupt, match=message):
        init(store, broken, now=NOW, replace=True)
    put_live(store, broken)
    before = store.current()
    with pytest.raises(BundleCorrupt, match=message) as caught:
        run(store, data.interactions, data.items, data.users, now=NOW)
    assert exit_code(caught.value) == 69
    assert store.current() == before
    store.rollback(run_id="back", promoted_at=NOW)
    still_serves(store)
    assert run(store, data.interactions, data.items, data.users, now=NOW, config=EASY).outcome == "promoted"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_vectors_that_are_none(
    store: Store, data: Synthetic, monkeypatch: pytest.MonkeyPatch, wrong: float, refused: Refused
) -> None:
    def broken(_self: BiEncoder, texts: list[str], **_: object) -> np.ndarray[Any, Any]:
        return np.full((len(texts), 64), wrong, dtype=np.float32)

    with monkeypatch.context() as patched:
        patched.setattr(BiEncoder, "encode", broken)
        items = data.items.with_columns(title=pl.col("title") + " anew")
        error = refused(PublishRefused, r"\d+ of \d+ vectors .* not finite and of unit length", items)
    assert exit_code(error) == 3
    assert run(store, data.interactions, items, data.users, now=NOW, config=EASY).outcome == "promoted"


def test_numbers_that_are_none(store: Store, data: Synthetic, still_serves: Look, refused: Refused) -> None:
    refused(InvalidData, "items.item_id", data.items.drop("item_id"))
    wrong = data.items.with_columns(price=pl.col("price").cast(pl.String))
    refused(InvalidData, "price", wrong)
    half = pl.when(pl.int_range(pl.len()) % 2 == 0)
    price = half.then(pl.lit(float("nan"))).otherwise(pl.col("price"))
    run(store, data.interactions, data.items.with_columns(price=price), data.users, now=NOW, config=EASY)
    still_serves(store)


def test_strange_texts(store: Store, data: Synthetic, still_serves: Look) -> None:
    titles = ["x " * 500_000, "👩‍👩‍👧‍👦🎧", "שלום עולם", "无线降噪耳机", "a\0b", "", " \t\n", "same", "same", "‮evil"]
    title = pl.Series("title", [*titles, *data.items["title"].to_list()[len(titles) :]])
    result = run(store, data.interactions, data.items.with_columns(title), data.users, now=NOW, config=EASY)
    assert result.outcome == "promoted"
    still_serves(store)


def test_hardly_any_items(data: Synthetic, refused: Refused) -> None:
    refused(InvalidData, "items: has no rows", data.items.clear())
    refused(
        InvalidData,
        "reads category_score, category_rank, which cannot be computed",
        data.items.head(1),
        config=EASY,
    )
    few = data.items.head(5)
    refused(PublishRefused, r"gate items: 0\.0625 is not", few, config=EASY)
    refused(InvalidData, "no interaction is left", data.items.with_columns(item_id="zz " + pl.col("item_id")))


def test_all_texts_alike(store: Store, data: Synthetic, still_serves: Look) -> None:
    same = data.items.with_columns(title=pl.lit("thing"), description=pl.lit("thing"))
    result = run(store, data.interactions, same, data.users, now=NOW, config=EASY)
    assert result.outcome == "promoted"
    still_serves(store)


def test_people_without_history_with_one_item_and_with_very_many_events(store: Store, data: Synthetic) -> None:
    row = data.interactions.head(1)
    often = pl.concat([row] * 20_000).with_columns(
        user_id=pl.lit("zz often"), timestamp=pl.col("timestamp") + pl.duration(seconds=pl.int_range(pl.len()))
    )
    once = row.with_columns(user_id=pl.lit("zz once"))
    users = pl.concat([data.users, *(data.users[:1].with_columns(user_id=pl.lit(f"zz {n}")) for n in ("often", "new"))])
    told = pl.concat([data.interactions, often, once])
    result = run(store, told, data.items, users, now=NOW, config=EASY)
    served = Recommender.load(store.bundle(result.version), device="cpu")
    lists = served.recommend(["zz often", "zz once"], 5)
    assert lists.group_by("user_id").len()["len"].to_list() == [5, 5]


def test_a_worse_model(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def spoilt(*arguments: Any, **named: Any) -> Refreshed:
        made = refresh(*arguments, **named)
        events = made.fitted.events.with_columns(item_row=pl.lit(0, dtype=pl.Int32))
        return Refreshed(replace(made.fitted, events=events, hide_seen=False), made.counts)

    monkeypatch.setattr("recsys.rebuild.gates.refresh", spoilt)
    config = RebuildConfig(gates=GatesConfig(min_users=5))
    error = refused(PublishRefused, r"gate freshest: -0\.\d+ is not at least -0\.01", config=config)
    assert exit_code(error) == 3


def test_ids_that_name_other_items_now(store: Store, data: Synthetic, still_serves: Look) -> None:
    other = data.items.with_columns(title=pl.col("title").reverse() + " other")
    result = run(store, data.interactions, other, data.users, now=NOW, config=EASY)
    assert result.counts["kept"] == 0
    assert (result.counts["added"], result.counts["dropped"]) == (0, 0)
    still_serves(store)


def test_half_the_catalogue(data: Synthetic, refused: Refused) -> None:
    half = data.items.head(data.items.height // 2)
    refused(PublishRefused, r"gate items: 0\.5 is not 0\.8 to 2\.0", half, config=EASY)


def test_another_schema(data: Synthetic, refused: Refused) -> None:
    numbers = data.interactions.with_columns(user_id=pl.col("user_id").str.slice(1).cast(pl.Int64))
    refused(InvalidData, "user_id", interactions=numbers)
    refused(InvalidData, "timestamp", interactions=data.interactions.drop("timestamp"))


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json", "a/../../outside.json"])
def test_a_model_that_leads_outside(store: Store, model: Path, tmp_path: Path, name: str, still_serves: Look) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    body = unsealed((folder / MANIFEST).read_bytes())
    body["files"][name] = body["files"]["state.json"]
    (folder / MANIFEST).write_bytes(sealed_bytes(body))
    before = store.current()
    with pytest.raises(BundleCorrupt, match="not a path in the bundle"):
        init(store, folder, now=NOW, replace=True)
    assert store.current() == before
    still_serves(store)


def test_links_in_a_model_and_in_the_live_version(
    store: Store, model: Path, tmp_path: Path, still_serves: Look
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "state.json").rename(tmp_path / "state.json")
    (folder / "state.json").symlink_to(tmp_path / "state.json")
    before = store.current()
    assert before is not None
    with pytest.raises(BundleCorrupt, match=r"state\.json is not a regular file"):
        init(store, folder, now=NOW, replace=True)
    assert store.current() == before
    still_serves(store)


@pytest.mark.parametrize("name", ["model.pkl", "weights.bin", "modeling.py", "model.joblib", "archive.zip"])
def test_files_that_run_code(store: Store, name: str, still_serves: Look, resealed: Reseal) -> None:
    before = store.current()
    folder = resealed(lambda folder: (folder / name).write_bytes(b"cos\nsystem\n"))
    with pytest.raises(PublishRefused, match=f"holds {name}; a stored bundle holds"):
        init(store, folder, now=NOW, replace=True)
    assert store.current() == before
    still_serves(store)


def test_a_model_of_another_format(store: Store, model: Path, tmp_path: Path, still_serves: Look) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    body = unsealed((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(sealed_bytes({**body, "format": "2"}))
    before = store.current()
    with pytest.raises(BundleIncompatible, match="has format '2', this version reads '1'; use the version"):
        init(store, folder, now=NOW, replace=True)
    assert store.current() == before
    still_serves(store)


def test_a_store_of_another_format(store: Store) -> None:
    (store.root / "FORMAT").write_text("2\n")
    with pytest.raises(BundleIncompatible, match="has format '2', this version reads '1'; use the version"):
        Store.open(store.root)


def test_a_damaged_live_version(store: Store, data: Synthetic, still_serves: Look) -> None:
    current = store.current()
    assert current is not None
    path = store.bundle(current.version) / "state.json"
    whole = path.read_bytes()
    path.write_bytes(json.dumps({**json.loads(whole), "as_of": 0.0}).encode())
    with pytest.raises(BundleCorrupt, match=r"state\.json has"):
        run(store, data.interactions, data.items, data.users, now=NOW)
    path.write_bytes(whole)
    still_serves(store)
