from datetime import UTC, datetime

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.errors import InvalidConfig
from recsys.schema import validate
from recsys.synthetic import TOPICS, generate


@pytest.fixture(scope="module")
def made():
    return generate()


def with_topics(made, frame):
    return frame.join(made.items.select("item_id", topic=pl.col("categories").list.first()), on="item_id")


def test_has_the_asked_sizes(made):
    assert made.interactions["user_id"].value_counts()["count"].to_list() == [20] * 200
    assert made.items.height == 300
    assert made.items["item_id"].n_unique() == 300
    assert made.users.height == made.truth.height == 200


def test_the_same_seed_gives_the_same_tables_and_another_one_others():
    first, again, other = (generate(n_users=20, seed=seed) for seed in (1, 1, 2))
    for table in ("interactions", "items", "users", "truth"):
        assert_frame_equal(getattr(first, table), getattr(again, table))
    assert not first.interactions.equals(other.interactions)


def test_passes_the_door_unchanged(made):
    tables = validate(made.interactions, made.items, made.users)
    assert tables.interactions.height == made.interactions.height
    assert tables.items["title"].n_unique() == 300


def test_cold_items_have_no_interaction_and_are_never_the_truth(made):
    warm = set(made.interactions["item_id"])
    cold = made.items.filter(pl.col("created_at") > datetime(2024, 1, 1, tzinfo=UTC))
    assert cold.height == 10
    assert not warm & set(cold["item_id"])
    assert set(made.truth["item_id"]) <= set(made.items["item_id"]) - set(cold["item_id"])


def test_the_truth_is_new_to_its_user(made):
    assert made.truth.join(made.interactions, on=["user_id", "item_id"], how="semi").is_empty()


def test_times_are_distinct_for_a_user_and_spread_over_100_days(made):
    assert made.interactions.select("user_id", "timestamp").is_unique().all()
    span = made.interactions["timestamp"]
    assert span.min() >= datetime(2024, 1, 1, tzinfo=UTC)
    assert span.max() < datetime(2024, 4, 10, tzinfo=UTC)
    late = made.interactions.filter(pl.col("timestamp") >= datetime(2024, 3, 31, tzinfo=UTC))
    assert late["user_id"].n_unique() > 150


def test_most_steps_are_in_one_or_two_topics(made):
    counts = with_topics(made, made.interactions).group_by("user_id", "topic").len()
    main = counts.sort("len", descending=True).group_by("user_id").head(2).group_by("user_id").agg(pl.col("len").sum())
    assert main["len"].mean() > 17


def test_one_successor_function_explains_every_truth(made):
    """Whoever knows each topic's order answers every user: the successor of an item is the same for all users."""
    steps = with_topics(made, pl.concat([made.interactions.select("user_id", "item_id"), made.truth]))
    own = steps.filter(pl.len().over("user_id", "topic") >= 5)
    pairs = own.select(
        "topic", item="item_id", following=pl.col("item_id").shift(-1).over("user_id", "topic")
    ).drop_nulls()
    assert pairs.group_by("item").agg(pl.col("following").n_unique())["following"].max() == 1
    assert with_topics(made, made.truth)["topic"].n_unique() == 10


def test_a_single_topic_works():
    made = generate(n_users=5, n_items=30, n_topics=1, events_per_user=10, n_cold_items=2)
    assert made.interactions.height == 50


def test_more_items_than_word_pairs_get_series_numbers():
    made = generate(n_users=2, n_items=150, n_topics=1, events_per_user=5, n_cold_items=0)
    assert made.items["title"].n_unique() == 150
    assert made.items["title"].str.contains("series 3").any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_users": 0}, "n_users and events_per_user must be at least 1"),
        ({"n_cold_items": -1}, "n_cold_items at least 0, not 200, 20 and -1"),
        ({"n_topics": len(TOPICS) + 1}, "n_topics must be 1 to 12, not 13"),
        ({"n_topics": 0}, "n_topics must be 1 to 12, not 0"),
        ({"n_items": 200}, r"leave 19 warm items in a topic; there must be more than events_per_user \(20\)"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(InvalidConfig, match=message):
        generate(**arguments)
