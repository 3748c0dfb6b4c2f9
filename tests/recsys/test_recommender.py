"""The door, on a small catalogue whose right answers are known."""

import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from recsys import Recommender, lists
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import BundleCorrupt, InvalidConfig, InvalidData, NotFitted, PublishRefused, UnknownUsers
from recsys.requests import ending_now
from recsys.rules import Rules
from recsys.synthetic import Synthetic, generate

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def config(tiny_bert: str) -> RecommenderConfig:
    """Everything small, so that a fit takes seconds."""
    return config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 3, "tower_max_steps": 5},
            "interest": {"max_groups": 16, "group_size": 4},
            "n_interest": 4,
            "keep_interest": "always",
            "device": "cpu",
            "progress": False,
        }
    )


@pytest.fixture(scope="session")
def data() -> Synthetic:
    return generate(n_users=80, n_items=120, n_topics=5, events_per_user=15, n_cold_items=5)


@pytest.fixture(scope="session")
def fitted(config: RecommenderConfig, data: Synthetic) -> Recommender:
    return Recommender(config).fit(data.interactions, data.items, data.users)


def tables(rows: list[tuple[object, object, int]], titles: dict[object, str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(user, item, hour) triples and titles as the two tables."""
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "hour"], orient="row")
    interactions = interactions.select("user_id", "item_id", timestamp=START + pl.duration(hours="hour"))
    return interactions, pl.DataFrame({"item_id": list(titles), "title": list(titles.values())})


def test_lists_have_the_promised_form(fitted: Recommender, data: Synthetic) -> None:
    users = ["u00007", "u00003", "u00007"]
    lists = fitted.recommend(users, 5)
    assert lists.columns == ["user_id", "item_id", "rank", "score"]
    assert lists["user_id"].to_list() == ["u00007"] * 5 + ["u00003"] * 5
    assert lists["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    assert lists.filter(pl.col("user_id") == "u00003")["score"].is_sorted(descending=True)
    assert lists.select("user_id", "item_id").is_unique().all()


def test_the_next_item_is_found_and_popularity_does_not_find_it(fitted: Recommender, data: Synthetic) -> None:
    found = fitted.recommend(data.users["user_id"], 10).join(data.truth, on=["user_id", "item_id"]).height
    popular = data.interactions.group_by("item_id").len().sort("len", "item_id", descending=[True, False])
    guessed = data.truth.filter(pl.col("item_id").is_in(popular.head(10)["item_id"].implode())).height
    assert found >= 0.8 * data.truth.height
    assert guessed <= 0.3 * data.truth.height


def test_seen_items_are_left_out_when_asked(fitted: Recommender, data: Synthetic) -> None:
    users = data.users["user_id"].head(20)
    seen = data.interactions.select("user_id", "item_id").unique()
    hidden = fitted.recommend(users, 20, filter_seen=True)
    shown = fitted.recommend(users, 20, filter_seen=False)
    assert hidden.join(seen, on=["user_id", "item_id"]).is_empty()
    assert shown.join(seen, on=["user_id", "item_id"]).height > 0
    assert_frame_equal(fitted.recommend(users, 20), hidden)  # "auto": nobody repeats here
    assert any("items that a user has already taken are hidden" in note for note in fitted.notes)


def test_repeats_are_shown_where_they_are_common(config: RecommenderConfig) -> None:
    rows = [(user, item, 10 * turn + user) for user in range(4) for turn in range(6) for item in (user, user + 1)]
    recommender = Recommender(config).fit(*tables(rows, {i: f"thing {i}" for i in range(6)}))
    lists = recommender.recommend([0], 3, details=True)
    assert {0, 1} & set(lists["item_id"])
    assert "repeat" in "+".join(lists["source"])
    assert any("already taken are shown" in note for note in recommender.notes)


def test_allow_and_deny(fitted: Recommender) -> None:
    few = ["i00000", "i00010", "i00118"] if "i00000" in _ids(fitted) else _ids(fitted)[:3]
    lists = fitted.recommend(["u00001"], 10, allow_items=few, filter_seen=False)
    assert set(lists["item_id"]) == set(few)
    best = fitted.recommend(["u00001"], 3)["item_id"].to_list()
    denied = fitted.recommend(["u00001"], 10, deny_items=best)
    assert not set(best) & set(denied["item_id"])
    assert denied.height == 10
    with pytest.raises(InvalidData, match="names items that are not in the catalogue"):
        fitted.recommend(["u00001"], allow_items=["nothing"])


def _ids(fitted: Recommender) -> list[str]:
    return sorted(fitted.similar_items(["i00000"], 1000)["similar_item_id"].to_list())


def test_unknown_users(fitted: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    both = fitted.recommend(["u00001", "nobody"], 5, details=True)
    assert both.filter(pl.col("user_id") == "nobody")["is_fallback"].to_list() == [True] * 5
    assert both.filter(pl.col("user_id") == "u00001")["is_fallback"].to_list() == [False] * 5
    with caplog.at_level(logging.WARNING, logger="recsys"):
        fitted.recommend(["nobody"], 5, on_unknown="warn")
    assert "1 users have no history" in caplog.text
    with pytest.raises(UnknownUsers, match="nobody"):
        fitted.recommend(["u00001", "nobody"], on_unknown="raise")
    with pytest.raises(InvalidConfig, match='on_unknown=\'ignore\' must be "fallback", "warn" or "raise"'):
        fitted.recommend(["nobody"], on_unknown="ignore")  # type: ignore[arg-type]


def test_details_say_where_an_item_came_from(fitted: Recommender) -> None:
    lists = fitted.recommend(["u00002"], 8, details=True)
    assert lists.columns[4:] == ["source", "stage1_score", "interest_score", "is_fallback"]
    named = {name for sources in lists["source"] for name in sources.split("+")}
    assert named <= set(fitted._state.weights)
    assert {"vector", "covisitation"} <= named
    assert lists["interest_score"].drop_nulls().len() > 0


def test_people_unseen_at_fit_are_served_from_their_histories(fitted: Recommender, data: Synthetic) -> None:
    user = "u00004"
    own = data.interactions.filter(pl.col("user_id") == user).sort("timestamp")
    as_known = fitted.recommend([user], 10).drop("user_id")
    as_stranger = fitted.recommend_for(own.with_columns(user_id=pl.lit("guest")), 10).drop("user_id")
    assert as_known["item_id"].to_list()[0] == as_stranger["item_id"].to_list()[0]
    by_mapping = fitted.recommend_for({"guest": own["item_id"].to_list()}, 10)
    assert by_mapping["user_id"].unique().to_list() == ["guest"]
    assert not set(by_mapping["item_id"]) & set(own["item_id"])
    assert len(set(by_mapping["item_id"]) & set(as_known["item_id"])) >= 5


def test_one_click_changes_the_list(fitted: Recommender, data: Synthetic) -> None:
    first, second = data.items["item_id"][0], data.items["item_id"][1]
    lists = fitted.recommend_for({"a": [first], "b": [second], "c": []}, 5, details=True)
    by_user = dict(lists.group_by("user_id").agg("item_id").iter_rows())
    assert by_user["a"] != by_user["b"]
    assert lists.filter(pl.col("user_id") == "c")["is_fallback"].all()


def test_cold_items_can_be_recommended(fitted: Recommender, data: Synthetic) -> None:
    cold = data.items.join(data.interactions, on="item_id", how="anti")["item_id"]
    lists = fitted.recommend(data.users["user_id"], 3, allow_items=cold)
    assert set(lists["item_id"]) == set(cold)
    assert lists["score"].is_finite().all()


def test_retrieve_gives_stage_one_alone(fitted: Recommender) -> None:
    found = fitted.retrieve(["u00001"], 25)
    assert found.columns == ["user_id", "item_id", "rank", "score", "source"]
    assert found["rank"].to_list() == list(range(1, 26))
    assert found["score"].is_sorted(descending=True)


def test_similar_items_share_words(fitted: Recommender, data: Synthetic) -> None:
    topics = dict(data.items.select("item_id", pl.col("categories").list.first()).iter_rows())
    similar = fitted.similar_items(["i00000", "i00001"], 5)
    assert similar.columns == ["item_id", "similar_item_id", "rank", "score"]
    assert (similar["item_id"] != similar["similar_item_id"]).all()
    same = [topics[a] == topics[b] for a, b in similar.select("item_id", "similar_item_id").iter_rows()]
    assert np.mean(same) >= 0.8
    with pytest.raises(InvalidData, match="names items that are not in the catalogue"):
        fitted.similar_items(["nothing"])


def test_same_seed_same_lists(fitted: Recommender, config: RecommenderConfig, data: Synthetic) -> None:
    shuffled = data.interactions.sample(fraction=1.0, shuffle=True, seed=3)
    again = Recommender(config).fit(shuffled, data.items.reverse(), data.users)
    users = data.users["user_id"]
    assert_frame_equal(fitted.recommend(users, 10, details=True), again.recommend(users, 10, details=True))


def test_blocks_side_by_side_equal_one_block(
    config: RecommenderConfig, data: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the interest model blocks follow one another.
    plain = Recommender(replace(config, n_interest=0)).fit(data.interactions, data.items, data.users)
    both = None, Rules(caps={"category": 3}, diversity=0.3)
    whole = [plain.recommend(plain.users, 10, rules=rules, details=True) for rules in both]
    monkeypatch.setattr(lists, "USERS_PER_BLOCK", 3)
    monkeypatch.setattr(lists, "AT_ONCE", 4)
    for rules, expected in zip(both, whole, strict=True):
        found = plain.recommend(plain.users, 10, rules=rules, details=True)
        assert_frame_equal(found, expected, abs_tol=1e-3)


def test_a_batch_equals_one_at_a_time(fitted: Recommender) -> None:
    users = ["u00001", "u00005", "u00009"]
    together = fitted.recommend(users, 10)
    alone = pl.concat([fitted.recommend([user], 10) for user in users])
    assert_frame_equal(together, alone, abs_tol=1e-3)


def test_load_of_save_gives_the_same_lists(fitted: Recommender, data: Synthetic, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    users = data.users["user_id"]
    for filter_seen in (True, False):
        expected = fitted.recommend(users, 10, filter_seen=filter_seen, details=True)
        assert_frame_equal(loaded.recommend(users, 10, filter_seen=filter_seen, details=True), expected)
    assert loaded.notes == fitted.notes
    assert_frame_equal(loaded.similar_items(["i00003"], 5), fitted.similar_items(["i00003"], 5))
    manifest = json.loads((tmp_path / "model" / "MANIFEST.json").read_text())
    assert {"items.parquet", "item_vectors.npy", "ranker/model.txt", "encoder/model.safetensors"} <= set(
        manifest["files"]
    )


def test_load_of_save_brings_every_tower_back(fitted: Recommender, data: Synthetic, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    before, after = fitted._state.towers, loaded._state.towers
    for name in ("item_vectors", "text_vectors", "searchable"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert (after.steps, after.event_kinds) == (before.steps, before.event_kinds)
    texts = [*data.items["title"].head(3), "无线降噪耳机"]
    np.testing.assert_allclose(after.embed(texts), before.embed(texts), atol=1e-6)
    given = {"new": data.items["item_id"].head(4).to_list()}
    assert_frame_equal(loaded.recommend_for(given, 10, details=True), fitted.recommend_for(given, 10, details=True))


def test_without_renewal_the_towers_are_those_of_the_label_windows(config: RecommenderConfig, data: Synthetic) -> None:
    quick = replace(config, n_interest=0)
    old, new = (
        Recommender(replace(quick, renew_towers=renew)).fit(data.interactions, data.items) for renew in (False, True)
    )
    assert not np.allclose(old._state.towers.item_vectors, new._state.towers.item_vectors)
    assert 0 < old._state.towers.steps == new._state.towers.steps <= 5
    np.testing.assert_array_equal(old._state.towers.text_vectors, new._state.towers.text_vectors)
    lists = old.recommend(data.users["user_id"], 10)
    assert lists.join(data.truth, on=["user_id", "item_id"]).height >= 0.7 * data.truth.height


def test_a_time_budget_bounds_the_neural_trainings(config: RecommenderConfig, data: Synthetic) -> None:
    endless = replace(config.contrastive, encoder_steps=10**6, tower_max_steps=10**6, tower_epochs=10**5)
    hurried = replace(config, n_interest=0, contrastive=endless, time_budget=0.02)
    started = time.monotonic()
    recommender = Recommender(hurried).fit(data.interactions, data.items)
    assert time.monotonic() - started < 1000  # endless steps would take hours
    assert 0 < recommender._state.towers.steps < 10**6
    assert recommender.recommend(["u00001"], 5).height == 5


def test_a_flipped_byte_in_a_saved_model_is_refused(fitted: Recommender, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    ranker = tmp_path / "model" / "ranker" / "model.txt"
    content = bytearray(ranker.read_bytes())
    content[len(content) // 2] ^= 1
    ranker.write_bytes(content)
    with pytest.raises(BundleCorrupt, match=r"ranker/model\.txt"):
        Recommender.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["pandas", "pyarrow", "csv"])
def test_frames_come_back_in_the_callers_library(kind: str, config: RecommenderConfig, tmp_path: Path) -> None:
    interactions, items = tables(
        [(u, (u + h) % 5, h) for u in range(3) for h in range(4)], dict.fromkeys(range(5), "a")
    )
    quick = replace(config, n_interest=0)
    if kind == "csv":
        interactions.write_csv(tmp_path / "interactions.csv")
        given = (tmp_path / "interactions.csv", items)
    else:
        given = (getattr(interactions, "to_pandas" if kind == "pandas" else "to_arrow")(), items)
    lists = Recommender(quick).fit(*given).recommend([1], 2)
    expected = {"pandas": pd.DataFrame, "pyarrow": pa.Table, "csv": pl.DataFrame}[kind]
    assert isinstance(lists, expected)


def test_integer_ids_come_back_as_integers(config: RecommenderConfig) -> None:
    interactions, items = tables([(u, u % 4 + 10, u) for u in range(8)], {i: f"thing {i}" for i in range(10, 15)})
    recommender = Recommender(config).fit(interactions, items)
    lists = recommender.recommend(np.array([1, 2]), 2)
    assert lists.schema["user_id"] == pl.Int64
    assert lists.schema["item_id"] == pl.Int64
    with pytest.raises(InvalidData, match="ids must be Int64 as at fit"):
        recommender.recommend(["1"])


def test_settings_that_name_what_is_not_there_are_noted(config: RecommenderConfig) -> None:
    interactions, items = tables(
        [(f"u{n % 4}", f"i{n % 5}", n) for n in range(12)], {f"i{n}": f"thing {n}" for n in range(5)}
    )
    misspelt = replace(config, n_interest=0, ignore_columns=("vots",), event_grades=("vew",))
    notes = Recommender(misspelt).fit(interactions, items).notes
    assert "ignore_columns: the items have no column vots." in notes
    assert any(note.startswith("event_grades: no interaction is 'vew'; there are '") for note in notes)


@pytest.mark.parametrize("k", [10**6, 2**40, 2**70])
def test_more_is_asked_for_than_there_is(fitted: Recommender, data: Synthetic, k: int) -> None:
    user, n_items = data.interactions["user_id"][0], data.items.height
    assert fitted.recommend([user], k, filter_seen=False).height == n_items
    assert 0 < fitted.retrieve([user], k, sources="vector").height < n_items
    assert fitted.similar_items(["i00001"], k).height == n_items - 1
    assert fitted.search(["anything"], k).height == n_items
    assert 0 < fitted.explain(user, k=k).height <= n_items


@pytest.mark.parametrize(
    "table",
    [pd.DataFrame({"user_id": ["a"]}), pl.DataFrame({"user_id": ["a"]}), pa.table({"user_id": ["a"]}), {"a": 1}],
)
def test_tables_are_no_lists_of_ids(fitted: Recommender, table: object) -> None:
    for ask in (fitted.recommend, fitted.search, fitted.similar_items, fitted.delete_users):
        with pytest.raises(InvalidData, match=r"must be a list or a series, got a .*give one of its columns"):
            ask(table)


@pytest.mark.parametrize("wrong", [None, 3])
def test_what_is_no_list_at_all(fitted: Recommender, wrong: object) -> None:
    with pytest.raises(InvalidData, match=f"texts: must be a list of strings, got {wrong}"):
        fitted.search(wrong)
    with pytest.raises(InvalidConfig, match=r"sources=\[3\]: known are"):
        fitted.retrieve(["a"], sources=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuning": {"scope": "last", "n_last": 99}}, "n_last=99 is over the . blocks"),
        (
            {"tuning": {"scope": "last", "n_last": 1}, "contrastive": {"adversarial": 1.0}},
            "scope='last' does not train",
        ),
        ({"training": {"strategy": "none such"}}, "none such"),
    ],
)
def test_settings_with_which_nothing_can_be_trained(
    config: RecommenderConfig, data: Synthetic, settings: dict[str, dict[str, object]], message: str
) -> None:
    changed = {name: replace(getattr(config, name), **values) for name, values in settings.items()}
    with pytest.raises(InvalidConfig, match=message):
        Recommender(replace(config, **changed)).fit(data.interactions, data.items)


def test_one_user_one_item_and_short_lists(config: RecommenderConfig, caplog: pytest.LogCaptureFixture) -> None:
    interactions, items = tables([("ada", "x", 0)], {"x": "the only thing"})
    recommender = Recommender(config).fit(interactions, items)
    with caplog.at_level(logging.WARNING, logger="recsys"):
        assert recommender.recommend(["ada"], 10).is_empty()
        assert recommender.recommend(["bob"], 10)["item_id"].to_list() == ["x"]
    assert "1 of 1 lists have fewer than k=10 items" in caplog.text
    assert any("ranker: left out" in note for note in recommender.notes)
    assert any("interest model: left out" in note for note in recommender.notes)


def test_k_beyond_the_catalogue_gives_what_there_is(fitted: Recommender, data: Synthetic) -> None:
    lists = fitted.recommend(["u00001"], 10_000, filter_seen=False)
    assert lists.height == data.items.height
    assert lists["item_id"].is_unique().all()


def test_difficult_titles(config: RecommenderConfig) -> None:
    titles = {
        "long": "very " * 20_000,
        "emoji": "🎧🎧 headphones 🎉",
        "arabic": "سماعات لاسلكية",
        "hebrew": "אוזניות אלחוטיות",
        "chinese": "无线降噪耳机",
        "empty": "",
        "blank": "",
        "control": "a\x00b\x07c",
    }
    taken = sorted(set(titles) - {"blank"})
    rows = [(f"u{u}", item, 7 * u + place) for u in range(12) for place, item in enumerate(taken)]
    unread = replace(config, unknown_token_limit=1.0)
    recommender = Recommender(unread).fit(*tables(rows, titles))
    lists = recommender.recommend_for({"new": ["long"]}, 7, details=True)
    assert set(lists["item_id"]) == set(titles) - {"long"}
    sources = {item: source.split("+") for item, source in lists.select("item_id", "source").iter_rows()}
    assert "vector" in sources["empty"]  # behaviour alone gives it a place
    assert not {"vector", "similar", "lexical"} & set(sources["blank"])  # nothing at all is known about it


def test_unavailable_items_are_never_shown(config: RecommenderConfig) -> None:
    interactions, items = tables(
        [(u, i, u + i) for u in range(6) for i in range(5)], {i: f"thing {i}" for i in range(6)}
    )
    items = items.with_columns(available=pl.col("item_id") != 2)
    lists = Recommender(config).fit(interactions, items).recommend([0, 1], 6, filter_seen=False)
    assert 2 not in lists["item_id"].to_list()
    assert 5 in lists["item_id"].to_list()


def test_a_catalogue_the_encoder_cannot_read_still_works(
    config: RecommenderConfig, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["排序", "搜索", "图论", "数论", "贪心", "递归"]
    titles = {i: f"{words[i % 6]}算法入门教程{i}" for i in range(24)}
    rows = [(u, (u + 6 * t) % 24, 24 * t + u) for u in range(30) for t in range(4)]
    with caplog.at_level(logging.WARNING, logger="recsys"):
        recommender = Recommender(config).fit(*tables(rows, titles))
    assert "it cannot read this language" in caplog.text
    assert "BAAI/bge-small-zh-v1.5" in caplog.text
    assert recommender.recommend([3], 5).height == 5
    lexical = recommender.recommend_for({"x": [0]}, 5, details=True).filter(pl.col("source").str.contains("lexical"))
    assert set(lexical["item_id"]) & {6, 12, 18}


def test_before_fit_everything_says_so(tmp_path: Path) -> None:
    recommender = Recommender()
    calls = (
        lambda: recommender.recommend(["a"]),
        lambda: recommender.recommend_for({"a": ["x"]}),
        lambda: recommender.retrieve(["a"]),
        lambda: recommender.similar_items(["x"]),
        lambda: recommender.save(tmp_path / "model"),
        lambda: recommender.notes,
    )
    for call in calls:
        with pytest.raises(NotFitted, match="call fit"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_must_be_a_positive_whole_number(fitted: Recommender, k: object) -> None:
    with pytest.raises(InvalidConfig, match="must be a whole number of at least 1"):
        fitted.recommend(["u00001"], k)  # type: ignore[arg-type]


def test_filter_seen_must_be_one_of_three(fitted: Recommender) -> None:
    with pytest.raises(InvalidConfig, match='must be True, False or "auto"'):
        fitted.recommend(["u00001"], filter_seen="yes")  # type: ignore[arg-type]


def test_a_refused_fit_leaves_the_old_state(fitted: Recommender, data: Synthetic) -> None:
    before = fitted.recommend(["u00001"], 5)
    with pytest.raises(InvalidData, match="timestamp"):
        fitted.fit(data.interactions.drop("timestamp"), data.items)
    assert_frame_equal(fitted.recommend(["u00001"], 5), before)


def test_no_users_give_an_empty_frame(fitted: Recommender) -> None:
    lists = fitted.recommend([], 5)
    assert lists.is_empty()
    assert lists.columns == ["user_id", "item_id", "rank", "score"]


def test_histories_without_times_count_as_fresh(fitted: Recommender, data: Synthetic) -> None:
    own = data.interactions.filter(pl.col("user_id") == "u00004").sort("timestamp")
    late = own.with_columns(timestamp=pl.lit(data.interactions["timestamp"].max()) + timedelta(days=2))
    assert fitted.recommend_for({"g": own["item_id"].to_list()}, 5).height == 5
    assert fitted.recommend_for(late.with_columns(user_id=pl.lit("g")), 5).height == 5


def test_items_that_all_have_one_title_leave_the_interest_model_out(config: RecommenderConfig, data: Synthetic) -> None:
    recommender = Recommender(config).fit(data.interactions, data.items.select("item_id", title=pl.lit("item")))
    assert any("interest model: left out, 0 users" in note for note in recommender.notes)
    assert recommender.recommend(["u00001"], 5).height == 5


def test_columns_called_like_our_own_do_no_harm(config: RecommenderConfig, data: Synthetic) -> None:
    n = data.items.height
    words = [*("age", "seconds", "moment", "stage1_score", "vector_rank", "interest_score", "item_count", "label")]
    numbers = ["count", "count_right", "row", "row_", "days_since_last", "rank", "score", "popularity"]
    items = data.items.with_columns(
        *(pl.Series(name, ["a", "b"] * (n // 2)) for name in words), *(pl.Series(name, range(n)) for name in numbers)
    )
    lists = Recommender(replace(config, n_interest=0)).fit(data.interactions, items).recommend(["u00001"], 5)
    assert lists.height == 5


def test_histories_without_times_end_now_even_where_the_data_begin_in_1970(
    config: RecommenderConfig, data: Synthetic
) -> None:
    stray = pl.DataFrame({"user_id": ["zz"], "item_id": ["i00000"], "timestamp": [datetime(1970, 1, 1, tzinfo=UTC)]})
    interactions = pl.concat([data.interactions.select(stray.columns), stray], how="vertical_relaxed")
    recommender = Recommender(replace(config, n_interest=0)).fit(interactions, data.items)
    state = recommender._state
    given = pl.DataFrame({"user_id": ["g", "g"], "item_row": [0, 1], "seconds": [0.0, 1.0]})
    assert ending_now(state, given)["seconds"].to_list() == [state.as_of - 2.0, state.as_of - 1.0]
    by_mapping = recommender.recommend_for({"g": ["i00000", "i00001"]}, 5)
    fresh = pl.DataFrame(
        {"user_id": "g", "item_id": ["i00000", "i00001"], "timestamp": [state.as_of - 2, state.as_of - 1]}
    )
    assert by_mapping["item_id"].to_list() == recommender.recommend_for(fresh, 5)["item_id"].to_list()


def test_everybody_named_in_a_table_of_histories_gets_a_list(fitted: Recommender) -> None:
    table = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["i00000", "nothing"]})
    lists = fitted.recommend_for(table, 2, details=True)
    assert lists["user_id"].to_list() == ["a", "a", "b", "b"]
    assert lists["is_fallback"].to_list() == [False, False, True, True]
    with pytest.raises(InvalidData, match="one type for all user ids"):
        fitted.recommend_for({"a": ["i00000"], 7: ["i00001"]}, 2)


def test_items_of_which_nothing_is_known_have_no_similar_ones_and_repeated_ids_count_once(
    config: RecommenderConfig, data: Synthetic, caplog: pytest.LogCaptureFixture
) -> None:
    cold = data.items.join(data.interactions, on="item_id", how="anti")["item_id"][0]
    items = data.items.with_columns(
        pl.when(pl.col("item_id").is_in(["i00003", cold])).then(pl.lit("")).otherwise(pl.col(name)).alias(name)
        for name in ("title", "description")
    ).with_columns(categories=pl.lit([], dtype=pl.List(pl.String)))
    recommender = Recommender(replace(config, n_interest=0)).fit(data.interactions, items)
    with caplog.at_level(logging.WARNING, logger="recsys"):
        similar = recommender.similar_items([cold, "i00003", "i00001", "i00001"], 2)
    assert similar["item_id"].to_list() == ["i00003", "i00003", "i00001", "i00001"]  # one from behaviour alone
    assert "1 of 3 lists have fewer than k=2 items" in caplog.text


def test_strangers_can_be_shown_items_that_nobody_took(fitted: Recommender, data: Synthetic) -> None:
    cold = data.items.join(data.interactions, on="item_id", how="anti")["item_id"]
    assert set(fitted.recommend(["nobody"], 3, allow_items=cold)["item_id"]) <= set(cold)
    assert fitted.recommend(["nobody"], 3, allow_items=cold).height == 3


@pytest.mark.parametrize("users", [1, None, ["\ud800"], [1.5], [None]])
def test_users_that_are_no_list_of_ids_are_refused(fitted: Recommender, users: object) -> None:
    with pytest.raises(InvalidData, match="ids"):
        fitted.recommend(users)  # type: ignore[arg-type]


def test_integer_ids_that_are_too_large_are_refused(config: RecommenderConfig) -> None:
    interactions, items = tables([(u, u % 4, u) for u in range(8)], {i: f"thing {i}" for i in range(5)})
    recommender = Recommender(replace(config, n_interest=0)).fit(interactions, items)
    with pytest.raises(InvalidData, match="must be a list of Int64 ids"):
        recommender.recommend([2**63 + 5])


def test_numpy_numbers_and_categorical_ids_are_fine(fitted: Recommender) -> None:
    users = pl.Series(["u00001"], dtype=pl.Categorical)
    assert fitted.recommend(users, np.int64(3), filter_seen=np.True_).height == 3  # type: ignore[arg-type]


def test_the_current_folder_is_not_replaced(
    fitted: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PublishRefused, match="holds the current folder"):
        fitted.save(".")


def test_an_index_that_cannot_be_built_is_a_configuration_error(config: RecommenderConfig, data: Synthetic) -> None:
    wrong = replace(config, index=replace(config.index, n_probe=1, kind="ivf", n_lists=10**6))
    many = pl.DataFrame({"item_id": range(10_000)}).with_columns(
        title=pl.lit("item ") + pl.col("item_id").cast(pl.String)
    )
    interactions, _ = tables([(0, 1, 0), (0, 2, 1), (1, 1, 2)], {1: "a"})
    with pytest.raises(InvalidConfig, match="n_lists"):
        Recommender(wrong).fit(interactions, many)
