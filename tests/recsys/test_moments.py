"""The moments of a fit: rows of all of them have the same columns, and none knows what lies after it."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys import Recommender, pipeline, prediction
from recsys.candidates import describe, source_names, to_columns
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import InvalidConfig
from recsys.events import strange_kinds
from recsys.pipeline import learn_first_stage, learn_second_stage, rows_of_now
from recsys.requests import known_people
from recsys.schema import validate
from recsys.snapshot import gather_people
from recsys.synthetic import Synthetic, generate
from recsys.windows import make_windows

KEYS = ["user_row", "item_row"]


def config_for(tiny_bert: str, **values: object) -> RecommenderConfig:
    small = {
        "encoder": {"model": tiny_bert, "precision": "fp32"},
        "contrastive": {"encoder_steps": 0, "tower_max_steps": 2},
        "ranker": {"n_trees": 10},
        "heads": {"n_trees": 10, "min_leaf_rows": 20, "n_threads": 1},
        "renew_towers": False,
        "n_interest": 0,
        "device": "cpu",
        "progress": False,
    }
    return config_from_dict({**small, **values})


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate(n_users=80, n_items=120, n_topics=5, events_per_user=15, n_cold_items=5)


def first_taken(data: Synthetic, share: float) -> pl.DataFrame:
    """The interactions, and five cold items that are first taken when this share of them is over."""
    moment = data.interactions["timestamp"].sort()[int(share * data.interactions.height)]
    users = data.interactions["user_id"].unique().sort().head(5)
    late = pl.DataFrame({"user_id": users, "item_id": data.items["item_id"].tail(5)}).with_columns(
        timestamp=pl.lit(moment, dtype=data.interactions.schema["timestamp"]), event=pl.lit("view")
    )
    return pl.concat([data.interactions, late.select(data.interactions.columns)])


@pytest.mark.parametrize("share", [0.85, 0.97])
def test_ease_is_a_source_at_every_moment_or_at_none(tiny_bert, data, share):
    config = config_for(tiny_bert, ease={"max_items": 115}, windows={"kind": "time"}, probabilities=False)
    interactions = first_taken(data, share)
    taken = [len(history["item_id"].unique()) for history in histories(interactions, data, config)]
    assert taken[0] <= 115 < taken[-1]
    over = Recommender(config).fit(interactions, data.items)
    assert "ease" not in over.sources
    assert any(note.startswith("ease: left out, 120 items") for note in over.notes)
    assert over.recommend(over.users.head(3), 5).height == 15


def histories(interactions: pl.DataFrame, data: Synthetic, config: RecommenderConfig) -> list[pl.DataFrame]:
    tables = validate(interactions, data.items)
    windows = make_windows(tables.interactions, config.windows)
    return [windows.history_b, windows.history_c, tables.interactions]


def test_ease_stays_when_items_are_first_taken_after_the_fit(tiny_bert, data):
    config = config_for(tiny_bert, ease={"max_items": 115}, windows={"kind": "time"}, probabilities=False)
    fitted = Recommender(config).fit(data.interactions, data.items)
    newest = first_taken(data, 0.97).tail(5).with_columns(timestamp=data.interactions["timestamp"].max())
    fitted.update_interactions(newest)
    weights = fitted._state.snapshot.behaviour["ease"]
    assert len(np.unique(weights.indices)) <= 115
    assert fitted.recommend(fitted.users.head(3), 5).height == 15


def test_times_that_are_dates_at_first_leave_the_columns_as_they_are(tiny_bert, data):
    place = pl.col("timestamp").rank("ordinal", descending=True).over("user_id")
    dated = data.interactions.with_columns(
        timestamp=pl.when(place <= 2).then("timestamp").otherwise(pl.col("timestamp").dt.truncate("1d"))
    )
    config = config_for(tiny_bert, windows={"kind": "last"}, probabilities=False)
    fitted = Recommender(config).fit(dated, data.items)
    assert fitted.recommend(fitted.users.head(3), 5).height == 15


def test_a_kind_of_event_that_begins_late_is_not_taken_for_another(tiny_bert, data, caplog):
    late = pl.col("timestamp") >= data.interactions["timestamp"].quantile(0.9, "nearest")
    interactions = data.interactions.with_columns(
        event=pl.when(late).then(pl.lit("purchase")).otherwise(pl.when(pl.int_range(pl.len()) % 3 == 0).then(
            pl.lit("cart")).otherwise(pl.lit("view")))
    )  # fmt: skip
    config = config_for(tiny_bert, windows={"kind": "time"}, probabilities=False)
    fitted = Recommender(config).fit(interactions, data.items)
    state = fitted._state
    assert state.towers.event_kinds == ("cart", "purchase", "view")
    assert (state.events["event_row"] == 1).sum() == (interactions["event"] == "purchase").sum()
    stranger = interactions.tail(2).with_columns(event=pl.lit("return"))
    assert strange_kinds(interactions, state.towers.event_kinds) == ""
    with caplog.at_level(logging.WARNING, logger="recsys"):
        fitted.update_interactions(stranger)
    assert "2 interactions are of kinds that were not there at the fit, 'return', and count as 'cart'" in caplog.text


def test_drift_is_looked_for_in_rows_as_they_are_served(tiny_bert, data):
    config = config_for(tiny_bert, windows={"kind": "last"}, probabilities=False)
    state = Recommender(config).fit(data.interactions, data.items)._state
    days = rows_of_now(state, config)["user_days_since_last"]
    assert days.max() == pytest.approx(1 / 86_400, rel=1e-3)


def test_a_snapshot_of_a_later_moment_is_refused_and_the_blends_rank_is_its_order(tiny_bert, data):
    config = config_for(tiny_bert, windows={"kind": "time"}, probabilities=False)
    state = Recommender(config).fit(data.interactions, data.items)._state
    people = known_people(state, state.timelines.user_ids.head(4))
    found = state.snapshot.retriever.retrieve(
        people.histories, blocked=np.zeros(len(state.catalogue), dtype=np.bool_), hide_seen=True
    )
    columns = to_columns(found)
    assert tuple(source_names(columns)) == tuple(state.snapshot.retriever.sources)
    rows = pl.DataFrame({name: columns[name] for name in ("user_row", "stage1_score", "stage1_rank")})
    order = pl.col("stage1_score").rank("ordinal", descending=True).over("user_row")
    assert rows.select(order == pl.col("stage1_rank"))["stage1_score"].all()
    rest = (state.snapshot, None, state.catalogue, config)
    assert len(describe(columns, people, *rest)["user_row"]) == rows.height
    earlier = gather_people(state.events.head(0), state.timelines.user_ids.head(4), state.as_of - 1.0)
    with pytest.raises(ValueError, match="is later than the moment of a user"):
        describe(columns, earlier, *rest)


def test_no_row_of_window_c_changes_what_the_heads_read(tiny_bert, monkeypatch):
    data = generate(n_users=150, n_items=120, n_topics=5, events_per_user=16, n_cold_items=4)
    config = config_for(tiny_bert, windows={"kind": "time", "label_share": 0.2})
    tables = validate(data.interactions, data.items)
    first = learn_first_stage(tables, config, "cpu")
    later = tables.interactions["timestamp"] >= first.windows.start_c
    other = data.items["item_id"].sample(tables.interactions.height, with_replacement=True, seed=1)
    edited = validate(
        tables.interactions.with_columns(item_id=pl.when(later).then(other).otherwise("item_id")), data.items
    )
    changed = replace(first, tables=edited, windows=make_windows(edited.interactions, config.windows))
    drawn = []
    draw = prediction._draw
    monkeypatch.setattr(prediction, "_draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    for stage in (first, changed):
        learn_second_stage(stage, config)
    (b, c), (b_again, c_again) = drawn[:2], drawn[2:]
    assert_frame_equal(b_again.rows, b.rows)
    assert not c_again.taken.equals(c.taken)
    both = c.rows.select(KEYS).join(c_again.rows.select(KEYS), on=KEYS)
    assert both.height > 1000
    mine, theirs = (rows.rows.join(both, on=KEYS, how="semi").sort(KEYS) for rows in (c, c_again))
    assert_frame_equal(theirs.select(KEYS + c.features), mine.select(KEYS + c.features))


def test_settings_that_the_encoder_does_not_allow_are_refused_before_anything_is_learnt(tiny_bert, data, monkeypatch):
    monkeypatch.setattr(pipeline, "learn_towers", lambda *_, **__: pytest.fail("it learns"))
    long = config_for(tiny_bert, n_interest=4, interest={"max_tokens": 4000})
    with pytest.raises(InvalidConfig, match=r"interest\.max_tokens=4000 is over the"):
        Recommender(long).fit(data.interactions, data.items)
    with pytest.raises(InvalidConfig, match="encoder: max_tokens=4000 is over the"):
        Recommender(config_for(tiny_bert, encoder={"model": tiny_bert, "max_tokens": 4000})).fit(
            data.interactions, data.items
        )
    with pytest.raises(InvalidConfig, match="must be at most 30 different kinds"):
        config_for(tiny_bert, event_grades=["view", "view"])


def test_text_with_too_many_values_to_be_groups_is_named(tiny_bert, data, monkeypatch):
    monkeypatch.setattr("recsys.catalogue.MAX_GROUPS", 3)
    items = data.items.with_columns(brand=pl.format("b{}", pl.int_range(pl.len()) % 7), size=pl.lit("s"))
    config = config_for(tiny_bert, probabilities=False)
    notes = Recommender(config).fit(data.interactions, items).notes
    assert any(note.startswith("items: no features of brand, text of more than") for note in notes)


def test_a_training_goes_on_only_in_the_same_fit(tiny_bert, data, tmp_path):
    def vectors(interactions, folder=None, **contrastive):
        training = {"checkpoint_folder": None if folder is None else str(folder), "checkpoint_every": 1}
        lesson = {"encoder_steps": 0, "tower_max_steps": 4, **contrastive}
        config = config_for(
            tiny_bert, contrastive=lesson, training=training, renew_towers=True, probabilities=False, ranker={}
        )
        return Recommender(config).fit(interactions, data.items)._state.towers.item_vectors

    plain = vectors(data.interactions)
    np.testing.assert_array_equal(vectors(data.interactions, tmp_path), plain)
    np.testing.assert_array_equal(vectors(data.interactions, tmp_path), plain)  # found finished
    faster = {"tower_learning_rate": 0.05}
    np.testing.assert_array_equal(vectors(data.interactions, tmp_path, **faster), vectors(data.interactions, **faster))
    other = data.interactions.with_columns(item_id=pl.col("item_id").reverse())
    np.testing.assert_array_equal(vectors(other, tmp_path), vectors(other))


def test_a_query_is_read_as_the_text_of_an_item_is(tiny_bert, data):
    items = data.items.with_columns(title=pl.lit("Café") + pl.col("title"), description=pl.lit(""))
    config = config_for(tiny_bert, probabilities=False)
    fitted = Recommender(config).fit(data.interactions, items)
    composed, apart = "Café\u0301".replace("é\u0301", "é"), "Cafe\u0301"
    assert composed != apart
    lists = [fitted.search([text + items["title"][0].removeprefix("Café")], 5) for text in (composed, apart)]
    assert_frame_equal(lists[0].drop("text"), lists[1].drop("text"))
