"""What changes between two rebuilds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from indexing.lookalikes import near_taken
from ranking.interest import InterestConfig, InterestModel
from recsys import Recommender, snapshot
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import InvalidConfig, InvalidData
from recsys.synthetic import Synthetic, generate


def config_for(tiny_bert: str, **values: object) -> RecommenderConfig:
    small = {
        "encoder": {"model": tiny_bert},
        "contrastive": {"encoder_steps": 0, "tower_max_steps": 2},
        "n_interest": 0,
        "probabilities": False,
        "device": "cpu",
        "progress": False,
    }
    return config_from_dict({**small, **values})


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)


@pytest.fixture(scope="module")
def saved(tiny_bert: str, data: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_for(tiny_bert, contrastive={"encoder_steps": 2, "tower_max_steps": 3})
    folder = tmp_path_factory.mktemp("model") / "saved"
    Recommender(config).fit(data.interactions, data.items, data.users).save(folder)
    return folder


@pytest.fixture
def served(saved: Path) -> Recommender:
    made = Recommender.load(saved, device="cpu")
    return made


def new_items(data: Synthetic) -> pl.DataFrame:
    """Two items whose texts are those of known ones, under new ids."""
    return data.items[:2].with_columns(item_id="new " + pl.col("item_id"))


def test_new_items_are_found_at_once_and_survive_a_save(served: Recommender, data: Synthetic, tmp_path: Path) -> None:
    before = served._state
    served.upsert_items(new_items(data))
    assert len(before.catalogue) == data.items.height  # the state that others may still hold is as it was
    ids = new_items(data)["item_id"].to_list()
    near = served.similar_items(ids, 5).filter(pl.col("rank") == 1)
    users = data.users["user_id"].head(20)
    lists = served.recommend(users, 100, allow_items=ids)
    assert set(lists["item_id"]) == set(ids)
    assert near["score"].min() > 0.5
    served.save(tmp_path / "again")
    loaded = Recommender.load(tmp_path / "again", device="cpu")
    assert_frame_equal(loaded.recommend(users, 10), served.recommend(users, 10), abs_tol=1e-5)


def test_what_nobody_took_is_found_by_the_company_of_items_near_it_until_somebody_does(
    served: Recommender, data: Synthetic
) -> None:
    strange = data.items[:1].with_columns(item_id=pl.lit("strange"), title=pl.lit("wholly other words"))
    strange = strange.with_columns(description=pl.lit(""), categories=pl.lit([], dtype=pl.List(pl.String)))
    served.upsert_items(strange)
    row = served.items.to_list().index("strange")
    then = served._state.snapshot
    times = then.retriever.item_weights["lookalike"]
    taken = then.events["item_row"].unique().to_numpy()
    assert (times[row], set(times[taken])) == (served.config.retriever.lookalike_of_new, {1.0})
    users = data.users["user_id"].head(20)
    assert served._state.towers.text_neighbours[served._state.catalogue.text_rows[row]].nnz <= 1  # itself at most
    found = served.retrieve(users, 10, allow_items=["strange"], sources=["lookalike"])
    assert found.height > 0
    event = data.interactions.tail(1).with_columns(item_id=pl.lit("strange"))
    served.update_interactions(event)
    assert served._state.snapshot.retriever.item_weights["lookalike"][row] == 1.0
    assert served.retrieve(users, 10, allow_items=["strange"], sources=["lookalike"]).is_empty()
    assert served.retrieve(users, 10, allow_items=["strange"], sources=["vector"]).height > 0


def test_items_without_text_do_not_speak_for_new_ones(
    served: Recommender, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(snapshot, "near_taken", lambda *given: asked.append(given) or near_taken(*given))
    mute = data.items[:1].with_columns(title=pl.lit(""), description=pl.lit(""))
    served.upsert_items(mute.with_columns(categories=pl.lit([], dtype=pl.List(pl.String))))
    state = served._state
    assert state.snapshot.retriever
    assert state.towers.searchable[0]
    assert not asked[-1][2][0]
    assert asked[-1][2][1:].all()


def test_a_changed_item_lies_elsewhere_and_nothing_else_moves(served: Recommender, data: Synthetic) -> None:
    before = served._state.towers.item_vectors.copy()
    served.upsert_items(data.items[:1].with_columns(title=pl.lit("wholly other words")))
    after = served._state.towers.item_vectors
    assert abs(after[0] - before[0]).max() > 1e-3
    assert abs(after[1:] - before[1:]).max() < 1e-5
    found, _ = served._state.towers.index.search(after[:1], 1)
    assert found[0, 0] == 0


def test_deleted_items_are_in_no_answer_until_they_come_back(served: Recommender, data: Synthetic) -> None:
    users = data.users["user_id"].head(20)
    gone = served.recommend(users, 3)["item_id"].unique().to_list()
    served.delete_items(gone)
    assert not set(gone) & set(served.recommend(users, 50)["item_id"])
    assert not set(gone) & set(served.retrieve(users, 50)["item_id"])
    kept = [item for item in data.items["item_id"] if item not in gone]
    assert not set(gone) & set(served.similar_items(kept[:3], 50)["similar_item_id"])
    assert not set(gone) & set(served.search(["anything"], 50)["item_id"])
    served.upsert_items(data.items.filter(pl.col("item_id").is_in(gone)))
    assert set(gone) & set(served.recommend(users, 3)["item_id"])


def test_deleted_users_are_nowhere_in_the_next_save(served: Recommender, data: Synthetic, tmp_path: Path) -> None:
    user = data.interactions["user_id"][0]
    rows = data.interactions.filter(pl.col("user_id") == user).height
    receipt = served.delete_users([user, "nobody"])
    assert (receipt.users, receipt.unknown, receipt.interactions, receipt.attributes) == (2, 1, rows, 1)
    served.save(tmp_path / "without")
    for path in (tmp_path / "without").rglob("*.parquet"):
        frame = pl.read_parquet(path)
        for column in frame.select(pl.col(pl.String)):
            assert user not in column.to_list(), path
    for path in (tmp_path / "without").rglob("*"):
        if path.is_file() and path.suffix in (".json", ".txt"):
            assert str(user).encode() not in path.read_bytes(), path
    assert served.recommend([user], 3, details=True)["is_fallback"].all()
    with pytest.raises(InvalidData, match="names everybody"):
        served.delete_users(served.users)


def test_scores_of_deleted_users_are_not_remembered(served: Recommender, tiny_bert: str) -> None:
    model = InterestModel(InterestConfig(max_tokens=16), checkpoint=tiny_bert, device="cpu", seed=0)
    model._cache.put([b"history and item"], [0.5])
    served._fitted = replace(served._state, interest=model)
    served.delete_users(["nobody"])
    assert len(model._cache) == 1
    served.delete_users(served.users.head(1))
    assert len(model._cache) == 0


def test_new_interactions_count_and_repeated_ones_do_not(served: Recommender, data: Synthetic) -> None:
    state = served._state
    served.update_interactions(data.interactions.tail(20))
    assert served._state.events.height == state.events.height
    last = data.interactions["timestamp"].max()
    event = data.interactions.tail(1).with_columns(user_id=pl.lit("somebody new"), timestamp=pl.lit(last))
    served.update_interactions(event)
    assert "somebody new" in served.users.to_list()
    assert not served.recommend(["somebody new"], 3, details=True)["is_fallback"].any()


def test_interactions_of_the_future_are_refused(served: Recommender, data: Synthetic) -> None:
    state, last = served._state, data.interactions["timestamp"].max()
    event = data.interactions.tail(1).with_columns(user_id=pl.lit("somebody new"))
    ahead = event.with_columns(timestamp=pl.lit(last + timedelta(hours=1)))
    with pytest.raises(InvalidData, match=r"must not lie after now.*1 of 1"):
        served.update_interactions(pl.concat([data.interactions.tail(5), ahead]), now=last)
    with pytest.raises(InvalidConfig, match="no time zone"):
        served.update_interactions(event, now=datetime(2024, 1, 1))
    with pytest.raises(InvalidData, match="as 2099-01-01"):
        served.update_interactions(event.with_columns(timestamp=pl.lit(datetime(2099, 1, 1, tzinfo=UTC))))
    assert served._state is state
    served.update_interactions(data.interactions, now=data.interactions["timestamp"].min())  # all of it is known
    served.update_interactions(event.with_columns(timestamp=pl.lit(last + timedelta(seconds=59))), now=last)
    assert "somebody new" in served.users.to_list()


def test_tables_of_another_kind_are_refused(served: Recommender, data: Synthetic) -> None:
    with pytest.raises(InvalidData, match="as at the fit"):
        served.upsert_items(data.items.with_columns(item_id=pl.int_range(pl.len())))
    with pytest.raises(InvalidData, match="the model was fitted with String"):
        served.update_interactions(data.interactions.with_columns(user_id=pl.int_range(pl.len())))


def test_text_columns_stay_features_when_their_values_come_and_go(tiny_bert: str, monkeypatch) -> None:
    made = generate(n_users=80, n_items=80, n_topics=4, events_per_user=14, n_cold_items=4)
    shop = pl.format("shop {}", pl.int_range(pl.len()) % 3)
    items = made.items.with_columns(shop=shop)
    users = made.users.select("user_id", place=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("b")).otherwise(
        pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("a")).otherwise(pl.lit("c"))))  # fmt: skip
    config = config_for(tiny_bert, ranker={"n_trees": 10}, windows={"kind": "time"})
    fitted = Recommender(config).fit(made.interactions, items, users)
    monkeypatch.setattr("recsys.catalogue.MAX_GROUPS", 3)
    fitted.upsert_items(items.head(1).with_columns(shop=pl.lit("a fourth shop")))
    assert fitted._state.catalogue.group_columns == ("shop",)
    before = fitted._state.user_numbers
    gone = users.filter(pl.col("place") == "b")["user_id"]
    fitted.delete_users(gone)
    after = fitted._state.user_numbers
    assert before is not None
    assert after is not None
    assert_frame_equal(after, before.filter(~pl.col("user_id").is_in(gone.implode())))
    assert after["user__place"].unique().sort().to_list() == [0.0, 2.0]
    assert fitted.recommend(fitted.users.head(3), 5).height == 15


def test_the_index_holds_the_vectors_of_items_that_were_not_touched(served: Recommender, data: Synthetic) -> None:
    with torch.no_grad():  # as a tower that shows more of what it learnt where an item is taken more often
        served._state.towers.item_tower.gate.copy_(torch.tensor([0.0, 1.0]))
    served.update_interactions(data.interactions.head(40).with_columns(timestamp=data.interactions["timestamp"].max()))
    served.upsert_items(new_items(data))
    towers = served._state.towers
    rows, scores = towers.index.search(towers.item_vectors, 1)
    np.testing.assert_allclose(scores[:, 0], 1.0, atol=1e-5)
    own = (towers.item_vectors[rows[:, 0]] * towers.item_vectors).sum(axis=1)
    np.testing.assert_allclose(own, 1.0, atol=1e-5)


def test_an_item_may_lack_what_others_have(tiny_bert: str, data: Synthetic) -> None:
    items = data.items.with_columns(shop=pl.lit("s"), stars=pl.int_range(pl.len()))
    fitted = Recommender(config_for(tiny_bert)).fit(data.interactions, items)
    bare = items.head(2).with_columns(shop=pl.lit(None), stars=pl.Series([4.0, None]))
    fitted.upsert_items(bare)
    known = fitted._state.catalogue.items.filter(pl.col("item_id").is_in(bare["item_id"].implode()))
    assert known["shop"].to_list() == [None, None]
    assert known["stars"].to_list() == [4, None]
    with pytest.raises(InvalidData, match="stars: must be Int64, as at the fit, but is Float64"):
        fitted.upsert_items(bare.with_columns(stars=4.5))
    with pytest.raises(InvalidData, match="shop: must be String, as at the fit, but is missing"):
        fitted.upsert_items(bare.drop("shop"))


def test_a_delta_keeps_what_was_deleted(served: Recommender, data: Synthetic) -> None:
    served.upsert_items(new_items(data))
    index = served._state.towers.index
    query, more = index.vectors[5:6], index.vectors[:2]
    index.delete(np.array([5]))
    index.add(more)
    assert index.size == len(index.vectors) == data.items.height + 4
    assert 5 not in index.search(query, 10)[0]
    with pytest.raises(ValueError, match="rows to delete must be integers"):
        index.delete(np.array([-1]))
