"""What a refresh carries over, drops and makes anew."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from indexing.embedding_cache import EmbeddingCache
from recsys import Recommender
from recsys.errors import BundleCorrupt, InvalidData
from recsys.fitted import Fitted
from recsys.rebuild import refresh as module
from recsys.rebuild.refresh import Refreshed, carried_vectors, refresh
from recsys.schema import validate
from recsys.synthetic import Synthetic


@pytest.fixture(scope="module")
def served(model: Path) -> Recommender:
    return Recommender.load(model, device="cpu")


def refreshed(
    served: Recommender, data: Synthetic, items: pl.DataFrame | None = None, as_of: datetime | None = None
) -> Refreshed:
    tables = validate(data.interactions, data.items if items is None else items, data.users)
    return refresh(served._state, tables, served.config, device="cpu", as_of=as_of)


def vector_of(state: Fitted, item_id: str) -> bytes:
    row = state.catalogue.rows_of(pl.Series("item_id", [item_id]))[0]
    return state.towers.text_vectors[state.catalogue.text_rows[row]].tobytes()


def test_vectors_of_known_texts_are_carried_bit_for_bit(served: Recommender, data: Synthetic) -> None:
    changed = data.items["item_id"][5]
    title = pl.when(pl.col("item_id") == changed).then(pl.lit("something else")).otherwise(pl.col("title"))
    made = refreshed(served, data, data.items.with_columns(title=title))
    assert (made.counts.encoded, made.counts.kept) == (1, made.counts.texts - 1)
    for item_id in data.items["item_id"]:
        same = vector_of(made.fitted, item_id) == vector_of(served._state, item_id)
        assert same is (item_id != changed)


def test_nothing_of_the_parent_changes(served: Recommender, data: Synthetic) -> None:
    before = {name: getattr(served._state.towers, name).copy() for name in ("text_vectors", "item_vectors")}
    refreshed(served, data, data.items.head(50))
    for name, vectors in before.items():
        np.testing.assert_array_equal(getattr(served._state.towers, name), vectors)


def test_dropped_items_are_nowhere(served: Recommender, data: Synthetic) -> None:
    gone = data.items["item_id"][0]
    made = refreshed(served, data, data.items[1:])
    state = made.fitted
    assert (made.counts.dropped, made.counts.items) == (1, data.items.height - 1)
    assert gone not in state.catalogue.items["item_id"]
    assert len(state.towers.item_vectors) == state.towers.index.size == len(state.catalogue)
    assert state.events["item_row"].max() < len(state.catalogue)  # type: ignore[operator]
    assert all(matrix.shape[0] == len(state.catalogue) for matrix in state.snapshot.behaviour.values())
    taken = data.interactions.filter(pl.col("item_id") != gone)
    assert made.counts.interactions == taken.height
    stays = data.items["item_id"][1]
    old, new = served._state.towers.item_tower, state.towers.item_tower
    rows = [one.catalogue.rows_of(pl.Series("item_id", [stays]))[0] for one in (served._state, state)]
    learnt = [tower.state_dict()["residuals.weight"][row] for tower, row in zip((old, new), rows, strict=True)]
    assert bool((learnt[0] == learnt[1]).all())


def test_a_new_item_without_text_is_not_searched(served: Recommender, data: Synthetic) -> None:
    empty = [pl.lit("").alias(name) for name in ("title", "description") if name in data.items.columns]
    bare = data.items[:1].with_columns(*empty, item_id=pl.lit("zz bare"))
    if "categories" in bare.columns:
        bare = bare.with_columns(categories=pl.lit([], dtype=bare.schema["categories"]))
    named = data.items[:1].with_columns(item_id=pl.lit("zz named"), title=pl.lit("brand new thing"))
    made = refreshed(served, data, pl.concat([data.items, bare, named]))
    rows = made.fitted.catalogue.rows_of(pl.Series("item_id", ["zz bare", "zz named"]))
    assert made.counts.added == 2
    assert made.fitted.towers.searchable[rows].tolist() == [False, True]
    assert np.isfinite(made.fitted.towers.item_vectors).all()
    last = data.interactions["timestamp"].max()
    users = data.interactions["user_id"].unique().sort().head(5)
    taken = pl.DataFrame({"user_id": users}).with_columns(
        item_id=pl.lit("zz bare"), timestamp=pl.lit(last), event=pl.lit("view")
    )
    interactions = pl.concat([data.interactions, taken.select(data.interactions.columns)], how="vertical_relaxed")
    tables = validate(interactions, pl.concat([data.items, bare, named]), data.users)
    night = refresh(made.fitted, tables, served.config, device="cpu").fitted
    assert night.towers.searchable[rows].tolist() == [False, True]  # taken, but no residual was learnt


def test_as_of(served: Recommender, data: Synthetic) -> None:
    last = data.interactions["timestamp"].max()
    assert isinstance(last, datetime)
    last = last.replace(tzinfo=UTC)
    whole = refreshed(served, data)
    assert (whole.counts.late, whole.fitted.as_of) == (0, (last + timedelta(seconds=1)).timestamp())
    told = refreshed(served, data, as_of=last)
    late = data.interactions.filter(pl.col("timestamp") == data.interactions["timestamp"].max()).height
    assert (told.counts.late, told.fitted.as_of) == (late, last.timestamp())
    assert told.fitted.events["seconds"].max() < last.timestamp()  # type: ignore[operator]
    with pytest.raises(InvalidData, match=r"no interaction lies before as_of 1999.*pass a later as_of"):
        refreshed(served, data, as_of=datetime(1999, 1, 1, tzinfo=UTC))


def test_the_same_texts_are_not_read_again(
    served: Recommender, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = data.items.with_columns(title=pl.col("title") + " anew")
    made = refreshed(served, data, items)
    tables = validate(data.interactions, items, data.users)

    def forbidden(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "text_neighbours", forbidden)
    again = refresh(served._state, tables, served.config, device="cpu", compared=made.fitted)
    assert again.counts.encoded == 0
    assert (again.fitted.towers.text_vectors == made.fitted.towers.text_vectors).all()


def test_few_of_many_texts_are_compared_alone(
    served: Recommender, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = pl.when(pl.int_range(pl.len()) < 3).then(pl.col("title") + " anew").otherwise(pl.col("title"))
    whole = refreshed(served, data, data.items.with_columns(title=title)).fitted
    monkeypatch.setattr(module, "MANY_TEXTS", 1)
    monkeypatch.setattr(module, "text_neighbours", None)
    part = refreshed(served, data, data.items.with_columns(title=title)).fitted
    row = whole.catalogue.texts.index(next(text for text in whole.catalogue.texts if "anew" in text))
    found, expected = (state.towers.text_neighbours[row].toarray() for state in (part, whole))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_neighbours_from_behaviour_are_counted_anew_only_where_something_was_done(
    served: Recommender, data: Synthetic
) -> None:
    parent = refreshed(served, data).fitted
    known = parent.snapshot.behaviour["covisitation"]

    def again(items: pl.DataFrame, as_of: datetime | None = None) -> object:
        tables = validate(data.interactions, items, data.users)
        made = refresh(parent, tables, served.config, device="cpu", as_of=as_of)
        return made.fitted.snapshot.behaviour["covisitation"]

    last = data.interactions["timestamp"].max()
    assert isinstance(last, datetime)
    assert again(data.items.with_columns(title=pl.col("title") + " anew")) is known
    assert again(data.items.head(-1)) is not known
    assert again(data.items, last.replace(tzinfo=UTC)) is not known


def test_a_damaged_cache(served: Recommender, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, served._state.towers.encoder.fingerprint())
    carried_vectors(served._state, ["one text"], cache)
    next(iter(tmp_path.rglob("part-*.parquet"))).unlink()
    with pytest.raises(BundleCorrupt, match="of the embedding cache was removed"):
        carried_vectors(served._state, ["one text", "and another"], cache)
