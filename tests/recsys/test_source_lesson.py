"""What window B teaches about the sources."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys import Recommender
from recsys.config import RecommenderConfig, config_from_dict
from recsys.notes import Notes
from recsys.schema import validate
from recsys.source_lesson import decide_news, weigh_sources
from recsys.synthetic import Synthetic, generate
from recsys.windows import WindowConfig, make_windows

KNOWN = np.ones(10, dtype=np.float32)
NEWS = np.array([1, 1, 0, 0, 1], dtype=np.float32)  # nobody took items 2 and 3


class TestWeights:
    def test_a_source_weighs_the_recall_of_its_first_hundred(self):
        candidates = pl.DataFrame(
            {
                "user_row": [0, 0, 0, 1],
                "item_row": [1, 2, 3, 1],
                "good_rank": [1.0, 2.0, None, 3.0],
                "fair_rank": [101.0, 1.0, 2.0, None],
                "poor_rank": [None, None, 1.0, 130.0],
            }
        )
        labels = pl.DataFrame({"user_row": [0, 0, 1], "item_row": [1, 2, 1]})
        assert weigh_sources(candidates, labels, KNOWN) == {"good": 1.0, "fair": 0.25, "poor": 0.05}
        assert weigh_sources(candidates, labels.clear(), KNOWN) == {"good": 1.0, "fair": 1.0, "poor": 1.0}

    def test_one_user_who_takes_a_lot_does_not_decide_for_all(self):
        many, others = 300, 3
        labels = pl.DataFrame({"user_row": [0] * many + [1, 2, 3], "item_row": [*range(many), 0, 0, 0]})
        ranks = [float(row % 90 + 1) for row in range(many)]
        candidates = labels.with_columns(busy_rank=pl.Series(ranks + [None] * others))
        candidates = candidates.with_columns(usual_rank=pl.Series([None] * many + [1.0] * others))
        found = weigh_sources(candidates, labels, np.ones(many, dtype=np.float32))
        assert found == {"busy": 1.0, "usual": pytest.approx(others / (many / 100))}
        fewer = candidates.filter((pl.col("busy_rank") <= 30) | pl.col("usual_rank").is_not_null())
        assert weigh_sources(fewer, labels, np.ones(many, dtype=np.float32))["usual"] == 1.0

    def test_beside_new_items_the_others_are_worth_what_they_find_of_known_ones(self):
        candidates = pl.DataFrame(
            {
                "user_row": [0, 0, 1],
                "item_row": [2, 1, 3],
                "lexical_rank": [1.0, 2.0, 1.0],
                "new_rank": [1.0, None, 1.0],
            }
        )
        labels = pl.DataFrame({"user_row": [0, 0, 1], "item_row": [1, 2, 3]})
        assert weigh_sources(candidates, labels, NEWS) == {"lexical": pytest.approx(1 / 3), "new": 1.0}
        assert weigh_sources(candidates.rename({"new_rank": "other_rank"}), labels, NEWS)["lexical"] == 1.0


def editions(data: Synthetic, days: int) -> Synthetic:
    """The same walks through a catalogue of which every few days appear new items with the old texts."""
    start = data.interactions["timestamp"].min()
    edition = ((pl.col("timestamp") - start) / timedelta(days=days)).floor().cast(pl.Int64).cast(pl.String)
    rows = data.interactions.with_columns(item_id=pl.col("item_id") + pl.lit(" ") + edition)
    named = rows["item_id"].unique().sort().to_frame().with_columns(old=pl.col("item_id").str.split(" ").list.first())
    items = named.join(data.items.rename({"item_id": "old"}), on="old", maintain_order="left").drop("old")
    return replace(data, interactions=rows, items=items)


class TestNews:
    def decided(self, rows: list[tuple[str, str]], **windows: object) -> tuple[bool, list[str]]:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        times = [start + timedelta(hours=hour) for hour in range(len(rows))]
        table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(timestamp=pl.Series(times))
        tables = validate(table, pl.DataFrame({"item_id": sorted({item for _, item in rows}), "title": "x"}))
        notes = Notes(())
        made = make_windows(tables.interactions, WindowConfig(**windows))  # type: ignore[arg-type]
        return decide_news(made, RecommenderConfig(), notes), notes.sentences

    def test_follows_the_share_of_what_was_never_taken_before(self):
        old = [(f"u{n % 5}", f"i{n % 4}") for n in range(80)]
        fresh = [(f"u{n % 5}", f"n{n}") for n in range(20)]
        assert self.decided([*old, *old[:20]], kind="time")[0] is False
        news, sentences = self.decided([*old, *fresh], kind="time")
        assert news is True
        assert sentences == [
            "new items: 100% of what was taken in window B had never been taken before (limit 20%), so items that "
            "nobody took yet are a source of their own."
        ]

    def test_windows_of_last_interactions_that_hide_new_items_are_warned_of(self, caplog):
        fresh = [(user, f"i{n}") for n in range(100) for user in (f"u{n // 5}", "editor")]  # who takes whatever comes
        with caplog.at_level(logging.WARNING, logger="recsys"):
            news, sentences = self.decided(fresh, kind="last")
        assert (news, len(sentences)) == (False, 2)
        assert 'windows.kind = "time"' in caplog.text
        assert self.decided(fresh, kind="time")[0] is True


@pytest.fixture(scope="module")
def news() -> Synthetic:
    return editions(generate(n_users=60, n_items=60, n_topics=4, events_per_user=12, n_cold_items=0), days=5)


def fitted(news: Synthetic, tiny_bert: str, before: datetime, **values: object) -> Recommender:
    small = {
        "encoder": {"model": tiny_bert, "precision": "fp32"},
        "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
        "windows": {"kind": "time"},
        "n_interest": 0,
        "probabilities": False,
        "device": "cpu",
        "progress": False,
    }
    config = config_from_dict({**small, **values})
    return Recommender(config).fit(news.interactions.filter(pl.col("timestamp") < before), news.items)


def test_where_what_is_taken_is_new_the_lists_are_too(news: Synthetic, tiny_bert: str, tmp_path: Path) -> None:
    end = news.interactions["timestamp"].max() - timedelta(days=10)
    made, without = fitted(news, tiny_bert, end), fitted(news, tiny_bert, end, retriever={"new": 0})
    past = news.interactions.filter(pl.col("timestamp") < end)
    users = past["user_id"].unique().sort()

    def share_of_new(recommender: Recommender) -> float:
        lists = recommender.retrieve(users, 10)
        return lists.join(past, on="item_id", how="anti").height / lists.height

    assert "new" in made.sources
    assert "new" not in without.sources
    assert any("no source of their own (switched off)" in note for note in without.notes)
    assert share_of_new(made) > 2 * share_of_new(without)
    alone = made.retrieve(users, 100, sources=["new"])
    assert alone.height > 0
    assert alone.join(past, on="item_id", how="semi").is_empty()
    made.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    assert_frame_equal(loaded.retrieve(users, 10), made.retrieve(users, 10), abs_tol=1e-5)
    fresh = news.items.tail(1).with_columns(item_id=pl.lit("of this morning"))
    loaded.upsert_items(fresh)
    asked = {"sources": ["new"], "allow_items": ["of this morning"]}
    assert loaded.retrieve(users, 100, **asked).height > 0
    loaded.update_interactions(past.tail(1).with_columns(item_id=pl.lit("of this morning")))
    assert loaded.retrieve(users, 100, **asked).is_empty()  # somebody has taken it
