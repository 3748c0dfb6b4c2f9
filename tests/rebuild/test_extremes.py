"""F16 to F19: tables at the edge of what there can be. A rebuild is bounded in what it reads, or refuses by name."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from indexing.encoder import BiEncoder
from recsys import Recommender
from recsys.cli import exit_code
from recsys.errors import InvalidData, PublishRefused
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, run
from recsys.rebuild.store import Store
from recsys.synthetic import Synthetic

pytestmark = pytest.mark.usefixtures("no_other_process")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EASY = RebuildConfig(gates=GatesConfig(margin=1.0, max_items=1000.0))
TEXT_CHARS = 400
Look = Callable[[Store], None]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the encoder reads from now on."""
    read: list[str] = []
    original = BiEncoder.encode

    def encode(self: BiEncoder, texts: list[str], **named: Any) -> Any:
        read.extend(texts)
        return original(self, texts, **named)

    monkeypatch.setattr(BiEncoder, "encode", encode)
    return read


def opened(store: Store) -> Recommender:
    current = store.current()
    assert current is not None
    return Recommender.load(store.bundle(current.version), device="cpu")


def test_titles_of_ten_megabytes(store: Store, data: Synthetic, encoded: list[str]) -> None:
    """Of each the beginning is read, once, whatever comes after it."""
    ten = 10 * 2**20
    long = ["words " * (ten // 6), "无线" * (ten // 6), "👟" * (ten // 4), "a\u0301" * (ten // 3), " " * ten]
    title = pl.Series("title", [*long, *data.items["title"].to_list()[len(long) :]])
    items = data.items.with_columns(title)
    assert run(store, data.interactions, items, data.users, now=NOW, config=EASY).counts["encoded"] == len(long)
    assert len(encoded) == len(long)
    assert max(map(len, encoded)) <= TEXT_CHARS
    served = opened(store)
    assert max(map(len, served._state.catalogue.texts)) <= TEXT_CHARS
    assert served.recommend(data.users["user_id"].head(3), 5).height == 15


def test_thousands_of_copies(store: Store, data: Synthetic, encoded: list[str]) -> None:
    """A tenth of a thousand, or a hundred times as many: one text is encoded, kept and compared, once."""
    texts = data.items.height + 1
    for copies in (100, 10_000):
        more = pl.concat([data.items[:1].with_columns(title=pl.lit("copied"), description=pl.lit(""))] * copies)
        more = more.with_columns(item_id="copy " + pl.int_range(pl.len()).cast(pl.String))
        result = run(store, data.interactions, pl.concat([data.items, more]), data.users, now=NOW, config=EASY)
        assert result.counts["items"] == data.items.height + copies
        assert (result.counts["texts"], len(encoded)) == (texts, 1)
    towers = opened(store)._state.towers
    assert towers.text_vectors.shape[0] == towers.text_neighbours.shape[0] == texts


@pytest.mark.parametrize("kind", ["pandas", "csv", "parquet"])
def test_lone_surrogates(store: Store, data: Synthetic, still_serves: Look, tmp_path: Path, kind: str) -> None:
    before, place = store.current(), tmp_path / f"items.{kind}"
    items: Any = str(place)
    if kind == "pandas":
        items = pd.DataFrame({"item_id": ["a", "b"], "title": pd.Series(["\ud800", "b"], dtype=object)})
    elif kind == "csv":
        place.write_bytes(b"item_id,title\na,\xed\xa0\x80\nb,b\n")
    else:
        whole = pl.DataFrame({"item_id": ["a", "b"], "title": ["XYZ", "b"]})
        whole.write_parquet(place, compression="uncompressed", statistics=False)
        place.write_bytes(place.read_bytes().replace(b"XYZ", b"\xed\xa0\x80"))
    with pytest.raises(InvalidData, match=r"items: .* could not be read as a table .* valid Unicode") as caught:
        run(store, data.interactions, items, data.users, now=NOW, config=EASY)
    assert exit_code(caught.value) == 65
    assert store.current() == before
    still_serves(store)


def test_no_item_may_be_shown(store: Store, data: Synthetic, still_serves: Look) -> None:
    """Nobody would get a list: the gate `golden` refuses it."""
    before = store.current()
    nothing = data.items.with_columns(available=pl.lit(False))
    with pytest.raises(PublishRefused, match=r"gate golden: 0\.0 is not 1\.0") as caught:
        run(store, data.interactions, nothing, data.users, now=NOW, config=EASY)
    assert exit_code(caught.value) == 3
    assert store.current() == before
    still_serves(store)
    one = data.items.with_columns(available=pl.int_range(pl.len()) == 0)
    assert run(store, data.interactions, one, data.users, now=NOW, config=EASY).outcome == "promoted"
    lists = opened(store).recommend(data.users["user_id"], 5, filter_seen=False)
    assert lists["item_id"].unique().to_list() == [data.items["item_id"].min()]


def test_a_catalogue_of_one_item(store: Store, data: Synthetic, still_serves: Look) -> None:
    """Other items are too few, whatever the limit allows: the ranker's features cannot be computed."""
    before = store.current()
    anything = RebuildConfig(gates=GatesConfig(margin=1.0, min_items=0.0))
    with pytest.raises(InvalidData, match="which cannot be computed"):
        run(store, data.interactions, data.items.head(1), data.users, now=NOW, config=anything)
    with pytest.raises(InvalidData, match="items: has no rows"):
        run(store, data.interactions, data.items.clear(), data.users, now=NOW, config=anything)
    assert store.current() == before
    still_serves(store)


def test_all_vectors_alike_and_lists_without_end(store: Store, data: Synthetic) -> None:
    same = data.items.with_columns(title=pl.lit("thing " * TEXT_CHARS))  # so long that no category is read
    run(store, data.interactions, same, data.users, now=NOW, config=EASY)
    served, people = opened(store), data.users["user_id"].head(3)
    assert len(np.unique(served._state.towers.text_vectors, axis=0)) == 1
    for k in (1, 79, 80, 81, 10**6, 10**9):
        lists = served.recommend(people, k, filter_seen=False)
        assert lists.group_by("user_id").len()["len"].to_list() == [min(k, 80)] * 3
        assert lists["score"].is_finite().all()
        assert not lists.select("user_id", "item_id").is_duplicated().any()
    for k in (1, 10**9):
        assert served.retrieve(people, k).height >= 3
        assert served.similar_items(served.items.head(2), k).height == 2 * min(k, 79)
        assert served.search(["thing"], k).height == min(k, 80)
    assert served.recommend(people, 10**9, deny_items=served.items).is_empty()
    assert served.recommend(["nobody"], 10**9, allow_items=served.items.head(2)).height == 2


def test_of_very_many_events_the_newest_are_read(store: Store, data: Synthetic) -> None:
    """By the vectors, 20,000 events say the same as the newest 2,000 of them: no more are read."""
    rows = data.interactions.head(1)
    often = pl.concat([rows] * 20_000).with_columns(
        user_id=pl.lit("zz often"),
        item_id=pl.Series(data.items["item_id"].to_list() * 250),
        timestamp=pl.col("timestamp") + pl.duration(seconds=pl.int_range(pl.len())),
    )
    newest = often.tail(2_000).with_columns(user_id=pl.lit("zz newest"))
    one = often.tail(1).with_columns(user_id=pl.lit("zz one"))
    users = [data.users, *(data.users[:1].with_columns(user_id=pl.lit(f"zz {n}")) for n in ("often", "newest", "one"))]
    told = pl.concat([data.interactions, often, newest, one])
    run(store, told, data.items, pl.concat(users), now=NOW, config=EASY)
    served = opened(store)
    vectors = [
        served.retrieve([user], 80, sources=["vector"], filter_seen=False)["item_id"].to_list()
        for user in ("zz often", "zz newest")
    ]
    assert vectors[0] == vectors[1]
    for user in ("zz often", "zz newest", "zz one"):
        assert served.recommend([user], 5, filter_seen=False).height == 5


def ranker_of(store: Store) -> str:
    current = store.current()
    assert current is not None
    digest = hashlib.sha256()
    for path in sorted((store.bundle(current.version) / "ranker").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("spoilt", ["nothing taken since", "one kind of event", "a column that tells"])
def test_what_would_spoil_a_training_spoils_no_rebuild(store: Store, data: Synthetic, spoilt: str) -> None:
    """F19: nothing is trained, so the ranker stays as it was fitted, to the bit."""
    before, interactions, items = ranker_of(store), data.interactions, data.items
    if spoilt == "nothing taken since":
        cut = interactions["timestamp"].quantile(0.9, "lower")
        interactions = interactions.filter(pl.col("timestamp") < cut)
    elif spoilt == "one kind of event":
        last = interactions["timestamp"].max()
        assert isinstance(last, datetime)
        row = interactions.head(1).with_columns(
            timestamp=pl.lit(last + timedelta(days=1), interactions.schema["timestamp"])
        )
        interactions = pl.concat([interactions, row]).with_columns(event=pl.lit("glance"))
    else:
        taken = interactions.group_by("item_id").agg(leak=pl.len())
        items = items.join(taken, on="item_id", how="left", maintain_order="left")
    result = run(store, interactions, items, data.users, now=NOW, config=EASY)
    assert result.outcome == "promoted"
    assert ranker_of(store) == before
    assert "item__leak" not in opened(store)._state.ranker.features  # type: ignore[union-attr]
    assert opened(store).recommend(data.users["user_id"].head(3), 5)["score"].is_finite().all()
