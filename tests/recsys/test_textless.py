"""A catalogue without a single text: behaviour carries the lists, and what nobody took cannot be searched."""

import polars as pl
import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from recsys.config import RecommenderConfig
from recsys.recommender import Recommender
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def tables():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    nothing = {"title": pl.lit(""), "description": pl.lit(""), "categories": pl.lit([], dtype=pl.List(pl.String))}
    return made.interactions, made.items.with_columns(**nothing)


@pytest.fixture(scope="module")
def fitted(tables, tiny_bert):
    config = RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=2, tower_max_steps=3),
        n_interest=4,
        probabilities=False,
        device="cpu",
        progress=False,
    )
    return Recommender(config).fit(*tables)


def test_behaviour_alone_makes_lists(fitted, tables):
    lists = fitted.recommend(fitted.users, 10)
    assert lists.group_by("user_id").len()["len"].unique().to_list() == [10]
    taken = tables[0].join(lists, on="user_id", how="semi")
    assert lists.join(taken, on=["user_id", "item_id"], how="semi").is_empty()
    assert fitted.retrieve(fitted.users, 20, sources=["vector"]).height > 0


def test_what_nobody_took_is_found_by_no_vector(fitted, tables, tmp_path):
    cold = tables[1].join(tables[0], on="item_id", how="anti")["item_id"]
    assert len(cold) == 5
    fitted.save(tmp_path / "model")
    for model in (fitted, Recommender.load(tmp_path / "model", device="cpu")):
        found = model.retrieve(model.users, 80, sources=["vector"], filter_seen=False)
        assert 0 < found["item_id"].n_unique() <= 75
        assert not set(found["item_id"]) & set(cold)
        assert model.similar_items(cold.to_list(), 5).is_empty()
        assert not set(model.similar_items(tables[0]["item_id"].head(1).to_list(), 80)["similar_item_id"]) & set(cold)


def test_a_text_that_comes_later_is_taken_in(fitted, tables, tmp_path):
    fitted.save(tmp_path / "model")
    later = Recommender.load(tmp_path / "model", device="cpu")
    new = tables[1].head(1).with_columns(item_id=pl.lit("new"), title=pl.lit("ba co di"))
    later.upsert_items(new)
    assert later.recommend(later.users, 5).height == 5 * len(later.users)
    later.upsert_items(new.with_columns(item_id=pl.lit("newer"), title=pl.lit("")))
    assert later.similar_items(["newer"], 5).is_empty()
    later.save(tmp_path / "again")
    assert Recommender.load(tmp_path / "again", device="cpu").recommend(later.users, 5).height == 5 * len(later.users)
