"""Rules at the door: what a caller may ask for, and what becomes of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys import Recommender, Rules
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig, InvalidData
from recsys.rules import prepare_rules
from recsys.synthetic import Synthetic, generate

NEWEST = datetime(2024, 4, 9, tzinfo=UTC)  # the last day of the interactions


@pytest.fixture(scope="module")
def data() -> Synthetic:
    """Every fifth item without a brand, ages of 0 to 119 days."""
    made = generate(n_users=60, n_items=120, n_topics=5, events_per_user=12, n_cold_items=5)
    row = pl.int_range(pl.len())
    items = made.items.with_columns(
        brand=pl.when(row % 5 > 0).then(pl.format("b{}", row % 7)),
        organic=row % 2 == 0,
        sales_rank=row,
        created_at=NEWEST - pl.duration(days=row),
    )
    return replace(made, items=items)


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, data: Synthetic) -> Recommender:
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
            "n_interest": 0,
            "device": "cpu",
            "progress": False,
        }
    )
    return Recommender(config).fit(data.interactions, data.items)


@pytest.fixture(scope="module")
def users(fitted: Recommender) -> list[str]:
    return fitted.users.head(20).to_list()


def with_items(lists: pl.DataFrame, data: Synthetic) -> pl.DataFrame:
    items = data.items.with_columns(category=pl.col("categories").list.last())
    return lists.join(items, on="item_id", how="left", maintain_order="left")


def test_no_rules_and_empty_rules_change_nothing(fitted, users):
    plain = fitted.recommend(users, 10, details=True)
    assert_frame_equal(fitted.recommend(users, 10, details=True, rules=Rules()), plain)
    assert_frame_equal(fitted.recommend(users, 10, details=True, rules=Rules(diversity=0.0)), plain)


def test_an_item_column_named_like_a_sources_rank_is_no_source(fitted, users):
    lists = fitted.recommend(users, 10, details=True)
    assert {name for source in lists["source"] for name in source.split("+")} <= set(fitted.sources)


def test_diversity_moves_items_and_leaves_their_scores(fitted, users):
    plain = fitted.recommend(users, 120, details=True)
    diverse = fitted.recommend(users, 10, details=True, rules=Rules(diversity=0.6))
    assert not diverse["item_id"].equals(plain.filter(pl.col("rank") <= 10)["item_id"])
    assert diverse["rank"].to_list() == list(range(1, 11)) * len(users)
    both = diverse.join(plain, on=["user_id", "item_id"], maintain_order="left")
    assert both["score"].to_list() == both["score_right"].to_list()
    assert diverse["source"].str.ends_with(", diversity").any()
    assert not plain["source"].str.contains(",").any()


def test_lists_are_more_diverse(fitted, users):
    towers, catalogue = fitted._state.towers, fitted._state.catalogue

    def likeness(diversity: float) -> float:
        lists = fitted.recommend(users, 8, rules=Rules(diversity=diversity))
        vectors = towers.item_vectors[catalogue.rows_of(lists["item_id"])].reshape(len(users), 8, -1)
        return float(np.mean((vectors @ vectors.transpose(0, 2, 1) - 2 * np.eye(8)).max(axis=2)))

    assert likeness(0.8) < likeness(0.4) < likeness(0.0)


def test_caps_by_category_and_by_column(fitted, users, data):
    lists = with_items(fitted.recommend(users, 10, rules=Rules(caps={"category": 3, "brand": 2})), data)
    assert lists.height == 10 * len(users)
    assert lists.group_by("user_id", "category").len()["len"].max() == 3
    assert lists.drop_nulls("brand").group_by("user_id", "brand").len()["len"].max() == 2
    assert lists.filter(pl.col("brand").is_null()).group_by("user_id").len()["len"].max() > 2


def test_boosts_by_column_and_by_item(fitted, users, data):
    item = fitted.recommend(users[:1], 30)["item_id"][29]
    rules = Rules(boosts={"brand": {"b3": 9.0, "b4": 0.01}, "item_id": {item: 1e6}})
    lists = with_items(fitted.recommend(users, 10, rules=rules, details=True), data)
    assert lists["item_id"][0] == item
    assert lists["source"][0].endswith(", boosted")
    boosted = (lists["brand"] == "b3").fill_null(value=False) | (lists["item_id"] == item)
    assert lists["source"].str.ends_with("boosted").equals(boosted)
    plain = with_items(fitted.recommend(users, 10), data)
    others, before = (table.filter(pl.col("item_id") != item)["brand"] for table in (lists, plain))
    assert (others == "b3").sum() > (before == "b3").sum()
    assert (others == "b4").sum() < (before == "b4").sum()


class TestPins:
    def test_stand_at_their_place_and_nowhere_else(self, fitted, users):
        first = fitted.recommend(users[:1], 1)["item_id"][0]
        lists = fitted.recommend(users, 5, filter_seen=False, rules=Rules(pins={3: first}), details=True)
        third = lists.filter(pl.col("rank") == 3)
        assert third["item_id"].to_list() == [first] * len(users)
        assert third["source"].str.ends_with("pinned").all()
        assert lists.filter(pl.col("item_id") == first)["rank"].to_list() == [3] * len(users)

    def test_are_left_out_where_seen_or_denied_or_not_available(self, fitted, users, data):
        seen = data.interactions.filter(pl.col("user_id") == users[0])["item_id"][0]
        lists = fitted.recommend(users, 5, filter_seen=True, rules=Rules(pins={1: seen}))
        takers = data.interactions.filter(pl.col("item_id") == seen)["user_id"].unique()
        has_it = lists.filter((pl.col("item_id") == seen) & (pl.col("rank") == 1))["user_id"]
        assert set(has_it) == set(users) - set(takers)
        assert lists.height == 5 * len(users)
        denied = fitted.recommend(users, 5, filter_seen=False, rules=Rules(pins={1: seen}), deny_items=[seen])
        assert seen not in denied["item_id"]
        elsewhere = Rules(pins={1: seen}, where={"item_id": [i for i in fitted.items if i != seen]})
        assert seen not in fitted.recommend(users, 5, filter_seen=False, rules=elsewhere)["item_id"]

    def test_come_last_where_the_catalogue_ends_before_their_place(self, fitted, data):
        n, item = data.items.height, fitted.items[7]
        lists = fitted.recommend(["nobody"], n + 5, rules=Rules(pins={n + 3: item}))
        assert lists.filter(pl.col("item_id") == item)["rank"].to_list() == [lists.height]

    def test_reach_people_without_history(self, fitted):
        item = fitted.items[100]
        lists = fitted.recommend(["nobody"], 4, rules=Rules(pins={2: item}), details=True)
        assert lists["item_id"][1] == item
        assert lists["is_fallback"].to_list() == [True] * 4

    def test_one_that_nothing_proposed_has_no_score(self, fitted, users):
        few = Recommender(replace(fitted.config, retriever=replace(fitted.config.retriever, n_candidates=5)))
        few._fitted = fitted._state
        candidates = few.recommend(users[:1], 60, filter_seen=False)["item_id"]
        other = fitted.items.filter(~fitted.items.is_in(few.recommend(users[:1], 5)["item_id"].implode()))
        lists = few.recommend(users[:1], 5, filter_seen=False, rules=Rules(pins={2: other[-1]}), details=True)
        row = lists.filter(pl.col("rank") == 2)
        assert len(candidates) == 60
        assert row["item_id"][0] == other[-1]
        assert row["is_fallback"].to_list() == [False]
        assert row["source"][0].endswith("pinned")


class TestWhere:
    @pytest.mark.parametrize(
        ("where", "fulfils"),
        [
            ({"brand": ["b1", "b2"]}, pl.col("brand").is_in(["b1", "b2"])),
            ({"brand": "b1"}, pl.col("brand") == "b1"),
            ({"organic": True}, pl.col("organic")),
            ({"organic": [False], "brand": {"b1"}}, ~pl.col("organic") & (pl.col("brand") == "b1")),
            ({"price": (None, 20)}, pl.col("price") <= 20),
            ({"price": (10, 20.0)}, pl.col("price").is_between(10, 20)),
            ({"created_at": (NEWEST - timedelta(days=30), None)}, pl.col("created_at") >= NEWEST - timedelta(days=30)),
        ],
    )
    def test_only_items_that_fulfil_it_are_shown_and_lists_stay_full(self, fitted, users, data, where, fulfils):
        lists = with_items(fitted.recommend(users, 3, filter_seen=False, rules=Rules(where=where), details=True), data)
        assert lists.height == 3 * len(users)
        assert lists.select(fulfils.all()).item()
        assert lists["source"].str.ends_with("where").all()

    @pytest.mark.parametrize("form", [lambda moment: moment, datetime.date, str, lambda m: m.replace(tzinfo=None)])
    def test_points_in_time_in_any_form(self, fitted, users, data, form):
        middle = data.items["created_at"].median().replace(hour=0, minute=0, second=0, microsecond=0)
        lists = fitted.recommend(users, 5, rules=Rules(where={"created_at": (form(middle), None)}))
        shown = data.items.filter(pl.col("item_id").is_in(lists["item_id"].implode()))
        assert lists.height
        assert shown["created_at"].min() >= middle

    def test_by_category(self, fitted, users, data):
        topic = data.items["categories"].list.last()[0]
        lists = with_items(
            fitted.recommend(users, 3, filter_seen=False, rules=Rules(where={"category": [topic]})), data
        )
        assert lists["category"].unique().to_list() == [topic]

    def test_by_any_of_the_categories(self, fitted, users, data):
        first = data.items["categories"].list.first().drop_nulls().unique().sort()[0]
        lists = fitted.recommend(users, 5, rules=Rules(where={"categories": [first]}))
        shown = data.items.filter(pl.col("item_id").is_in(lists["item_id"].implode()))
        assert shown.height
        assert shown["categories"].list.contains(first).all()
        with pytest.raises(InvalidData, match=r"rules.where.categories: names values that no item has.*'none such'"):
            fitted.recommend(users, 5, rules=Rules(where={"categories": ["none such"]}))

    def test_nothing_left_is_reported(self, fitted, users, caplog):
        with caplog.at_level(logging.WARNING, logger="recsys"):
            assert fitted.recommend(users, 3, rules=Rules(where={"price": (1e9, None)})).is_empty()
        assert "20 of 20 lists have fewer than k=3 items" in caplog.text


def test_factors_may_be_whole_and_fractional(fitted, users):
    ways = ({"b1": 2, "b2": 0.5}, {"b1": 2.0, "b2": 0.5})
    first, second = (fitted.recommend(users, 5, rules=Rules(boosts={"brand": factors})) for factors in ways)
    assert first.equals(second)


def test_freshness_prefers_newer_items(fitted, users, data):
    def age(rules: Rules) -> float:
        lists = with_items(fitted.recommend(users, 10, rules=rules), data)
        return float((NEWEST - lists["created_at"]).dt.total_days().mean())

    assert age(Rules(freshness=1.0, half_life=10)) < age(Rules(freshness=0.3, half_life=10)) < age(Rules())
    lists = fitted.recommend(users, 10, rules=Rules(freshness=1.0, half_life=10), details=True)
    assert lists["source"].str.contains(", freshness").any()


def test_freshness_is_half_after_a_half_life(fitted):
    state = fitted._state
    state = replace(state, as_of=NEWEST.timestamp())
    factors = prepare_rules(Rules(freshness=0.5, half_life=10), state, 5).lists.freshness
    assert factors is not None
    np.testing.assert_allclose(factors[[0, 10, 20]], [1.0, 0.75, 0.625])
    youngest = replace(state, as_of=(NEWEST - timedelta(days=50)).timestamp())
    factors = prepare_rules(Rules(freshness=0.5, half_life=10), youngest, 5).lists.freshness
    assert factors is not None
    assert factors[0] == 1.0  # made known before its day


def test_calibration_brings_category_shares_closer_to_the_history(fitted, users, data):
    def distance(rules: Rules) -> float:
        lists = with_items(fitted.recommend(users, 10, rules=rules), data)
        taken = with_items(data.interactions.filter(pl.col("user_id").is_in(users)), data)
        share = pl.col("len") / pl.col("len").sum().over("user_id")
        shown, had = (t.group_by("user_id", "category").len().with_columns(share=share) for t in (lists, taken))
        both = shown.join(had, on=["user_id", "category"], how="full", coalesce=True).fill_null(0.0)
        return float((both["share"] - both["share_right"]).abs().sum())

    assert distance(Rules(calibration=0.9)) < distance(Rules())


def test_rules_hold_for_people_unseen_at_fit(fitted, data):
    history = {"guest": fitted.items[:3].to_list()}
    lists = with_items(fitted.recommend_for(history, 6, rules=Rules(caps={"category": 2}), details=True), data)
    assert lists.height == 6
    assert lists.group_by("category").len()["len"].max() == 2
    assert lists["source"].str.contains(", caps").any()


def test_users_are_arranged_alike_alone_and_among_others(fitted, users):
    rules = Rules(diversity=0.4, caps={"brand": 2}, calibration=0.3, freshness=0.2, pins={2: fitted.items[7]})
    together = fitted.recommend(users, 6, rules=rules)
    alone = pl.concat([fitted.recommend([user], 6, rules=rules) for user in users[:4]])
    assert_frame_equal(together.head(alone.height), alone)


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"diversity": 1.0}, r"rules.diversity=1.0 must lie in \[0, 1\); 0 leaves it out"),
            ({"diversity": "much"}, r"rules.diversity='much' must lie in \[0, 1\)"),
            ({"calibration": -0.1}, r"rules.calibration=-0.1 must lie in \[0, 1\)"),
            ({"calibration": float("nan")}, r"rules.calibration=nan must lie in \[0, 1\)"),
            ({"freshness": 1.1}, r"rules.freshness=1.1 must lie in \[0, 1\]"),
            ({"half_life": 0}, "rules.half_life=0 is in days, it must be above 0"),
            ({"caps": {"brand": 0}}, r"rules.caps\['brand'\]=0 must be a whole number of at least 1"),
            ({"caps": ["brand"]}, r"rules.caps=\['brand'\] must be a mapping"),
            ({"boosts": {"brand": {"b1": 0}}}, r"rules.boosts\['brand'\]\['b1'\]=0 must be above 0; use where or deny"),
            ({"boosts": {"i1": 2.0}}, r"rules.boosts\['i1'\]=2.0 must be a mapping from values to factors"),
            ({"pins": {0: "i00001"}}, "rules.pins: position=0 must be a whole number of at least 1"),
            ({"pins": {1: "a", 2: "a"}}, "an item can be pinned once; leave one of them out"),
        ],
    )
    def test_at_once(self, given: dict[str, Any], message):
        with pytest.raises(InvalidConfig, match=message):
            Rules(**given)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"pins": {6: "i00001"}}, "rules.pins: position 6 lies beyond k=5; ask for longer lists or leave it out"),
            (
                {"caps": {"seller": 2}},
                "rules.caps: the items have no column 'seller'; there are: item_id, title, .*bra",
            ),
            ({"caps": {"categories": 2}}, "rules.caps: the items have no column 'categories'.*\"category\""),
            ({"boosts": {"seller": {"x": 2}}}, "rules.boosts: the items have no column 'seller'"),
            ({"where": {"price": (1, 2, 3)}}, r"rules.where\['price'\]=\(1, 2, 3\) must be \(least, most\), or a list"),
            ({"where": {"price": ("cheap", None)}}, r"rules.where\['price'\]: \('cheap', None\) cannot be compared"),
            ({"where": {"price": (9.0, 1.0)}}, r"rules.where\['price'\]=\(9.0, 1.0\): nothing lies between them"),
            (
                {"where": {"created_at": ("soon", None)}},
                r"rules.where\['created_at'\]: \('soon', None\) cannot be comp",
            ),
            ({"where": {"price": ["cheap"]}}, r"rules.where\['price'\]: \['cheap'\] cannot be compared with.*Float64"),
        ],
    )
    def test_against_the_catalogue(self, fitted, users, given, message):
        with pytest.raises(InvalidConfig, match=message):
            fitted.recommend(users, 5, rules=Rules(**given))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"pins": {1: "nothing"}}, "rules.pins.item_id: names items that are not in the catalogue.*'nothing'"),
            ({"boosts": {"item_id": {"nothing": 2.0}}}, "rules.boosts.item_id: names items that are not in the catal"),
            ({"where": {"brand": ["b1", "b9"]}}, "rules.where.brand: names values that no item has.*'b9'.*spelling"),
            ({"boosts": {"brand": {"b9": 2.0}}}, "rules.boosts.brand: names values that no item has"),
        ],
    )
    def test_items_and_values_that_are_not_there(self, fitted, users, given, message):
        with pytest.raises(InvalidData, match=message):
            fitted.recommend(users, 5, rules=Rules(**given))

    def test_what_is_no_rules(self, fitted, users):
        with pytest.raises(InvalidConfig, match=r"rules=\{'diversity': 0.3\} must be a Rules"):
            fitted.recommend(users, 5, rules={"diversity": 0.3})

    def test_what_has_nothing_to_go_by(self, fitted):
        state = fitted._state
        bare = state.catalogue.items.with_columns(created_at=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
        groups = state.catalogue.groups.with_columns(category=pl.lit(0, dtype=pl.Int32))
        state = replace(state, catalogue=replace(state.catalogue, items=bare, groups=groups))
        with pytest.raises(InvalidConfig, match=r"rules.freshness: no item has created_at to go by; set it to 0"):
            prepare_rules(Rules(freshness=0.5), state, 5)
        with pytest.raises(
            InvalidConfig, match=r"rules.calibration: the items have no categories to go by; set it to 0"
        ):
            prepare_rules(Rules(calibration=0.5), state, 5)


@pytest.mark.parametrize(
    ("rules", "kind", "match"),
    [
        (Rules(where={"sales_rank": [4.9]}), InvalidData, r"values that no item has\. 1 row\. first: 4\.9"),
        (Rules(boosts={"sales_rank": {4.9: 2.0}}), InvalidData, "values that no item has"),
        (Rules(where={"brand": [None]}), InvalidData, "values that no item has"),
        (Rules(where={"sales_rank": (float("nan"), None)}), InvalidConfig, "NaN is no bound"),
        (Rules(pins={1: ["a list"]}), InvalidData, "rules.pins"),
    ],
)
def test_values_that_mean_nothing_are_refused(fitted, users, rules, kind, match):
    with pytest.raises(kind, match=match):
        fitted.recommend(users, 5, rules=rules)


def test_a_whole_number_may_be_written_with_a_point(fitted, users):
    lists = fitted.recommend(users, 2, filter_seen=False, rules=Rules(where={"sales_rank": [4.0]}))
    assert lists["item_id"].unique().to_list() == fitted.items[4:5].to_list()
