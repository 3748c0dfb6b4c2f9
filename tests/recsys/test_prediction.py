"""Probabilities of pairs: what is drawn stands for all pairs, no later row is read, and the door keeps its promises."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal, assert_series_equal

from recsys import Recommender, prediction
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import InvalidConfig, InvalidData, NotFitted, UnknownUsers
from recsys.events import to_events
from recsys.notes import Notes
from recsys.prediction import ANY, Asker, draw_pairs, draw_users, horizon_of, learn_probabilities
from recsys.schema import validate
from recsys.snapshot import gather_people, take_snapshot
from recsys.synthetic import generate
from recsys.windows import make_windows

USERS = ["u00003", "u00001", "u00002"]


def config_for(tiny_bert: str, **values: object) -> RecommenderConfig:
    small = {
        "encoder": {"model": tiny_bert, "precision": "fp32"},
        "contrastive": {"encoder_steps": 0, "tower_max_steps": 3},
        "windows": {"kind": "time", "label_share": 0.2},
        "heads": {"n_trees": 30, "min_leaf_rows": 20, "n_threads": 1},
        "renew_towers": False,
        "n_interest": 0,
        "device": "cpu",
        "progress": False,
    }
    return config_from_dict({**small, **values})


@pytest.fixture(scope="module")
def interactions() -> pl.DataFrame:
    """Three of four events are views, one in five hundred is a return."""
    made = generate(n_users=150, n_items=120, n_topics=5, events_per_user=16, n_cold_items=4)
    row = pl.int_range(pl.len())
    kind = pl.when(row % 500 == 7).then(pl.lit("return")).when(row % 4 == 0).then(pl.lit("purchase"))
    return made.interactions.sort("timestamp", "user_id").with_columns(event=kind.otherwise(pl.lit("view")))


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    return generate(n_users=150, n_items=120, n_topics=5, events_per_user=16, n_cold_items=4).items


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, interactions: pl.DataFrame, items: pl.DataFrame) -> Recommender:
    return Recommender(config_for(tiny_bert)).fit(interactions, items)


def all_pairs(fitted: Recommender, users: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": users}).join(fitted.items.to_frame("item_id"), how="cross")


def test_probabilities_come_in_the_order_of_the_pairs(fitted: Recommender) -> None:
    pairs = all_pairs(fitted, USERS).sample(fraction=1.0, shuffle=True, seed=1)
    found = fitted.predict_proba(pairs)
    assert found.columns == ["user_id", "item_id", "probability"]
    assert_frame_equal(found.select("user_id", "item_id"), pairs)
    assert found["probability"].is_between(0, 1, closed="none").all()
    again = fitted.predict_proba(pairs.reverse()).reverse()
    assert_series_equal(again["probability"], found["probability"])


def test_a_pair_has_one_probability_whatever_is_asked_with_it(fitted: Recommender, monkeypatch) -> None:
    pairs = all_pairs(fitted, USERS)
    together = fitted.predict_proba(pairs)
    monkeypatch.setattr(prediction, "USERS_PER_BLOCK", 2)
    assert_frame_equal(fitted.predict_proba(pairs), together)
    row = together.row(130)
    assert fitted.predict_proba([row[:2], row[:2]])["probability"].to_list() == pytest.approx([row[2]] * 2)


def test_candidates_are_more_probable_and_the_sum_is_about_what_was_taken(fitted: Recommender, interactions) -> None:
    users = fitted.users.to_list()
    found = fitted.predict_proba(all_pairs(fitted, users))
    best = fitted.recommend(users, 5).select("user_id", "item_id")
    assert found.join(best, on=["user_id", "item_id"])["probability"].mean() > 2 * found["probability"].mean()
    newest = make_windows(interactions, fitted.config.windows).labels_c.select("user_id", "item_id").n_unique()
    assert found["probability"].sum() == pytest.approx(newest, rel=0.6)


def test_reports_are_by_kind_of_event_and_rare_kinds_are_left_out_aloud(fitted: Recommender) -> None:
    reports = fitted.probability_reports
    assert list(reports) == [ANY, "purchase", "view"]
    whole, candidates = reports[ANY].pairs, reports[ANY].candidates
    assert whole.horizon == candidates.horizon
    assert whole.horizon.startswith("within ")
    assert whole.n > candidates.n > 0
    assert whole.base_rate < candidates.base_rate
    assert whole.auc > 0.6
    assert reports["purchase"].pairs.base_rate < reports[ANY].pairs.base_rate
    assert sum(n for *_, n in whole.reliability) == whole.n
    assert any("event 'return' is left out, taken pairs: " in note for note in fitted.notes)
    assert any(f"event 'any' {whole.horizon}, calibrated by {whole.method}" in note for note in fitted.notes)


def test_a_kind_of_event_is_rarer_than_any(fitted: Recommender) -> None:
    pairs = all_pairs(fitted, fitted.users.to_list())
    means = {event: fitted.predict_proba(pairs, event)["probability"].mean() for event in (None, "view", "purchase")}
    assert means["purchase"] < means["view"] < means[None]


def test_saved_and_loaded_recommenders_answer_alike(fitted: Recommender, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model", device="cpu")
    pairs = all_pairs(fitted, USERS)
    assert loaded.probability_reports == fitted.probability_reports
    for event in (None, "purchase"):
        assert_frame_equal(loaded.predict_proba(pairs, event), fitted.predict_proba(pairs, event))


def test_frames_come_back_in_the_library_of_the_interactions(fitted: Recommender, monkeypatch) -> None:
    pairs = all_pairs(fitted, USERS[:1])
    monkeypatch.setattr(fitted, "_implementation", validate(pd_rows(), pd_items()).implementation)
    found = fitted.predict_proba(pairs.to_pandas())
    assert isinstance(found, pd.DataFrame)
    assert found["item_id"].tolist() == pairs["item_id"].to_list()
    assert isinstance(fitted.predict_proba(pairs.to_arrow()), pd.DataFrame)


def pd_rows() -> pd.DataFrame:
    return pd.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1]})


def pd_items() -> pd.DataFrame:
    return pd.DataFrame({"item_id": ["b"], "title": ["thing"]})


def test_no_pairs_no_probabilities(fitted: Recommender) -> None:
    assert fitted.predict_proba([]).shape == (0, 3)


def test_the_door_says_what_is_wrong(fitted: Recommender) -> None:
    with pytest.raises(NotFitted, match="has not learnt anything yet"):
        Recommender().predict_proba([("a", "b")])
    with pytest.raises(
        InvalidConfig, match=r"event='return': there are probabilities of \['any', 'purchase', 'view'\]"
    ):
        fitted.predict_proba([("u00001", "i00001")], "return")
    with pytest.raises(UnknownUsers, match="1 user was not in the interactions at fit: 'nobody'"):
        fitted.predict_proba([("nobody", fitted.items[0])])
    with pytest.raises(InvalidData, match="names items that are not in the catalogue"):
        fitted.predict_proba([("u00001", "nothing")])
    with pytest.raises(InvalidData, match=r"pairs\.item_id: the required column is missing; there are: user_id"):
        fitted.predict_proba(pl.DataFrame({"user_id": ["u00001"]}))
    with pytest.raises(InvalidData, match=r"pairs: each must be a tuple of a user id and an item id\. 1 row"):
        fitted.predict_proba([("u00001",)])
    with pytest.raises(InvalidData, match="ids must be String as at fit, got Int64"):
        fitted.predict_proba([(1, 2)])
    with pytest.raises(InvalidData, match="pairs: ids of several types, or of none that is usable"):
        fitted.predict_proba([("u00001", "i00001"), (1, 2)])


def test_without_heads_the_door_names_the_setting(fitted: Recommender, monkeypatch) -> None:
    monkeypatch.setattr(fitted, "_fitted", replace(fitted._state, probabilities=None))
    for ask in (lambda: fitted.predict_proba([]), lambda: fitted.probability_reports):
        with pytest.raises(NotFitted, match="fitted with probabilities = false; set it to true and fit again"):
            ask()


def test_switched_off_nothing_is_learnt(
    tiny_bert: str, interactions: pl.DataFrame, items: pl.DataFrame, tmp_path
) -> None:
    quick = Recommender(config_for(tiny_bert, probabilities=False)).fit(interactions.head(400), items)
    quick.save(tmp_path / "model")
    assert not (tmp_path / "model" / "probabilities").exists()
    assert Recommender.load(tmp_path / "model", device="cpu")._state.probabilities is None
    assert not any(note.startswith("probabilities") for note in quick.notes)


class Sides:
    """Head features of window B and C for fixed pairs, from some interactions, with the towers of a fit."""

    def __init__(self, fitted: Recommender, interactions: pl.DataFrame, items: pl.DataFrame) -> None:
        state, self.config = fitted._state, fitted.config
        self.catalogue = Catalogue.of(validate(interactions, items).items)
        self.windows = make_windows(validate(interactions, items).interactions, self.config.windows)
        self.towers = state.towers

    def numbered(self, rows: pl.DataFrame) -> pl.DataFrame:
        return to_events(rows, self.catalogue, self.towers.event_kinds)

    def snapshot(self, history: pl.DataFrame, start: datetime):
        return take_snapshot(
            self.numbered(history),
            start.timestamp(),
            self.towers,
            self.catalogue,
            self.config,
            repeats=False,
            news=False,
            with_ease=True,
        )

    def features(self, history: pl.DataFrame, start: datetime, users: pl.Series) -> pl.DataFrame:
        asker = Asker(self.snapshot(history, start), self.catalogue, self.config, hide_seen=True)
        people = gather_people(self.numbered(history), users, start.timestamp())
        rng = np.random.default_rng(0)
        drawn = {
            "user_row": rng.integers(len(users), size=500),
            "item_row": rng.integers(len(self.catalogue), size=500),
        }
        pairs = pl.DataFrame(drawn).cast(pl.Int32).unique(maintain_order=True)
        return asker.describe(pairs, asker.propose(people), people)


def test_no_row_of_the_label_window_changes_a_feature_of_a_head(fitted, interactions, items) -> None:
    windows = Sides(fitted, interactions, items).windows
    for history, start in ((windows.history_b, windows.start_b), (windows.history_c, windows.start_c)):
        later = pl.col("timestamp") >= start
        edited = interactions.with_columns(
            item_id=pl.when(later).then(pl.lit(items["item_id"][0])).otherwise("item_id"),
            user_id=pl.when(later & (pl.col("user_id") < "u00050")).then(pl.lit("u00060")).otherwise("user_id"),
        )
        changed = Sides(fitted, edited, items)
        known = validate(edited, items).interactions.filter(pl.col("timestamp") < start)
        users = history["user_id"].unique().sort().head(40)
        as_it_was = Sides(fitted, interactions, items).features(history, start, users)
        assert "stage1_score" in as_it_was.columns
        assert_frame_equal(changed.features(known, start, users), as_it_was)


def test_heads_learn_nothing_from_window_c_and_the_same_seed_gives_the_same_head(fitted, interactions, items) -> None:
    sides = Sides(fitted, interactions, items)
    windows = sides.windows
    snapshots = (
        sides.snapshot(windows.history_b, windows.start_b),
        sides.snapshot(windows.history_c, windows.start_c),
    )
    rest = (snapshots, sides.numbered, None, sides.catalogue, sides.config, Notes(()))
    changed = replace(windows, labels_c=windows.labels_c.with_columns(item_id=pl.col("item_id").shuffle(seed=1)))
    one, two, again = (
        learn_probabilities(chosen, *rest, hide_seen=True).heads[ANY] for chosen in (windows, changed, windows)
    )
    assert one._booster.model_to_string() == two._booster.model_to_string() == again._booster.model_to_string()
    assert one._calibration == again._calibration
    assert one._calibration != two._calibration
    assert not [name for name in one.features if name.startswith("interest")]


def test_where_there_is_one_kind_of_event_its_head_is_that_of_any(fitted, interactions, items) -> None:
    sides = Sides(fitted, interactions.with_columns(event=pl.lit("purchase")), items)
    windows = sides.windows
    snapshots = (
        sides.snapshot(windows.history_b, windows.start_b),
        sides.snapshot(windows.history_c, windows.start_c),
    )
    rest = (snapshots, sides.numbered, None, sides.catalogue, sides.config, Notes(()))
    made = learn_probabilities(windows, *rest, hide_seen=True)
    assert list(made.heads) == [ANY, "purchase"]
    assert made.heads["purchase"] is made.heads[ANY]


def test_users_of_the_report_serve_for_nothing_else() -> None:
    rows = pl.DataFrame({"fold": list(range(prediction.N_FOLDS))})
    stages = prediction._stages(rows, rows)
    assert stages["report"]["fold"].to_list() == [0, 1, 2]
    for name in ("training", "validation", "calibration"):
        assert set(stages[name]["fold"]).isdisjoint(stages["report"]["fold"])
    assert set(stages["training"]["fold"]).isdisjoint(stages["validation"]["fold"])


def test_drawn_pairs_stand_for_all_pairs() -> None:
    rng = np.random.default_rng(0)
    n_users, n_items = 5, 3000

    def some(n: int) -> pl.DataFrame:
        drawn = {"user_row": rng.integers(n_users, size=n), "item_row": rng.integers(n_items, size=n)}
        return pl.DataFrame(drawn).cast(pl.Int32).unique(maintain_order=True)

    proposed, own, taken = some(1000), some(300), some(60)
    pairs = draw_pairs(proposed, own, taken, n_users=n_users, n_items=n_items, seed=3)
    assert pairs.select("user_row", "item_row").is_unique().all()
    assert pairs.group_by("user_row").agg(pl.col("weight").sum())["weight"].to_list() == pytest.approx([n_items] * 5)
    assert pairs.join(taken, on=["user_row", "item_row"])["weight"].to_list() == [1.0] * taken.height
    left = proposed.join(taken, on=["user_row", "item_row"], how="anti")
    kept = pairs.join(left, on=["user_row", "item_row"])
    assert kept.height == n_users * prediction.N_CANDIDATES
    assert kept["weight"].sum() == pytest.approx(left.height)
    assert_frame_equal(draw_pairs(proposed, own, taken, n_users=n_users, n_items=n_items, seed=3), pairs)


def test_drawn_pairs_of_a_small_catalogue_are_all_pairs() -> None:
    everything = pl.DataFrame({"user_row": [0] * 4, "item_row": [0, 1, 2, 3]}).cast(pl.Int32)
    pairs = draw_pairs(everything, everything.head(1), everything.head(2), n_users=1, n_items=4, seed=0)
    assert pairs["item_row"].to_list() == [0, 1, 2, 3]
    assert pairs["weight"].to_list() == [1.0] * 4


def test_drawn_users_stand_for_all_users(monkeypatch) -> None:
    monkeypatch.setattr(prediction, "N_USERS", 10)
    when = datetime(2026, 1, 1, tzinfo=UTC)
    history = pl.DataFrame({"user_id": range(100), "timestamp": [when] * 100})
    history = history.cast({"timestamp": pl.Datetime("us", "UTC")})
    few, many = history.head(3), history.head(60)
    found = draw_users(history, few, "time", when.replace(month=2), seed=0)
    assert found["user_weight"].to_list() == pytest.approx([1.0] * 3 + [97 / 7] * 7)
    found = draw_users(history, many, "time", when.replace(month=2), seed=0)
    assert (found["user_id"] < 60).sum() == 5
    assert found["user_weight"].sum() == pytest.approx(100)
    assert found["moment"].unique().to_list() == [when.replace(month=2).timestamp()]
    last = draw_users(history, many, "last", None, seed=0)
    assert last["user_id"].max() < 60
    assert last["user_weight"].sum() == pytest.approx(60)


def test_the_horizon_in_words(interactions: pl.DataFrame) -> None:
    windows = make_windows(interactions, config_from_dict({"windows": {"kind": "time"}}).windows)
    days = (windows.end - windows.start_c).total_seconds() / 86_400
    assert horizon_of(windows) == f"within {days:.1f} days"
    assert horizon_of(replace(windows, start_c=None)) == "his next interaction"
