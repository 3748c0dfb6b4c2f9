"""What a snapshot knows about the items: what was done with them, their age and their numbers."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from ranking.cross_encoder import CrossEncoder
from ranking.interest import InterestConfig, InterestModel
from recsys.candidates import add_interest, interest_ranks
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig
from recsys.snapshot import gather_people, item_table

MOMENT = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = [datetime(2024, 2, 20, tzinfo=UTC), None, datetime(2024, 3, 5, tzinfo=UTC)]
ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["red shoe", "blue shoe", "green hat"],
        "description": [""] * 3,
        "categories": [["shoes"], ["shoes"], ["hats"]],
        "price": [1.0, None, 3.0],
        "created_at": pl.Series(DAYS, dtype=pl.Datetime("us", "UTC")),
        "available": [True] * 3,
    }
)
EVENTS = pl.DataFrame(
    {
        "user_id": ["u", "u", "v"],
        "item_row": pl.Series([2, 1, 2], dtype=pl.Int32),
        "seconds": [MOMENT.timestamp() - hours * 3600.0 for hours in (30, 20, 1)],
        "event_row": pl.Series([0, 1, 1], dtype=pl.Int16),
    }
)


def table(items: pl.DataFrame = ITEMS, *, ignore: tuple[str, ...] = (), clock: bool = False) -> pl.DataFrame:
    catalogue = Catalogue.of(items, ignore_columns=ignore)
    config = RecommenderConfig()
    return item_table(EVENTS, MOMENT.timestamp(), catalogue, config, kinds=("view", "buy"), clock=clock)


def test_there_is_a_row_for_each_item_in_order():
    found = table()
    assert found["item_row"].to_list() == [0, 1, 2]
    assert found["item_count"].to_list() == [0.0, 1.0, 2.0]
    assert found["item_rate_buy"].to_list() == [None, 1.0, 0.5]
    assert found["item__price"].to_list() == [1.0, None, 3.0]


def test_age_is_from_the_creation_and_null_before_it():
    assert table()["item_age_days"].to_list() == [pytest.approx(10.0), None, None]
    never = ITEMS.with_columns(created_at=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
    assert "item_age_days" not in table(never).columns


def test_a_price_that_is_to_be_ignored_is_not_there():
    assert "item__price" not in table(ignore=("price",)).columns


def test_hours_are_counted_only_where_moments_are_the_users_own():
    assert "item_hour" in table(clock=True).columns
    assert "item_hour" not in table().columns


def test_an_unchanged_history_costs_no_pass_of_the_interest_model_and_a_click_does(tiny_bert, monkeypatch):
    catalogue = Catalogue.of(ITEMS.with_columns(title=pl.Series(["ba co", "di fu", "ga lo"])))
    config = RecommenderConfig(n_interest=2)
    small = InterestConfig(max_tokens=16, group_size=2, precision="fp32")
    model = InterestModel(small, checkpoint=tiny_bert, device="cpu", seed=0).fit(["ba"] * 8, [["co", "di"]] * 8)
    candidates = {"user_row": np.array([0, 0], dtype=np.int32), "item_row": np.array([0, 1], dtype=np.int32)}
    passes, forward = [], CrossEncoder.forward

    def counted(network, features):
        passes.append(1)
        return forward(network, features)

    monkeypatch.setattr(CrossEncoder, "forward", counted)

    def scores(events):
        people = gather_people(events, pl.Series(["u"]))
        return add_interest(candidates, people, model, catalogue, config)["interest_score"].tolist()

    first = scores(EVENTS)
    assert (scores(EVENTS), len(passes)) == (first, 1)
    click = EVENTS.filter(user_id="v").with_columns(user_id=pl.lit("u"), item_row=pl.lit(0, dtype=pl.Int32))
    assert scores(pl.concat([EVENTS, click])) != first
    assert len(passes) == 2


def test_equal_interest_scores_of_a_user_share_the_first_of_their_places():
    users = np.array([0, 0, 0, 0, 1, 1, 4], dtype=np.int32)
    scores = np.array([0.5, 2.0, 0.5, -1.0, 0.5, 0.5, -1.0], dtype=np.float32)
    assert interest_ranks(users, scores).tolist() == [2, 1, 2, 4, 1, 1, 1]
    assert interest_ranks(users[:0], scores[:0]).tolist() == []
