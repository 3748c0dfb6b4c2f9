from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import recsys.second_stage as module
from ranking.ranker import Ranker
from ranking.training_set import TrainingSet
from recsys.catalogue import Catalogue
from recsys.config import config_from_dict
from recsys.events import graded, to_events
from recsys.notes import Notes
from recsys.pipeline import open_window
from recsys.ranker_lesson import MIN_RANKER_USERS, earns_its_place, stacked, train_ranker, without_users
from recsys.schema import validate
from recsys.second_stage import (
    LabelWindow,
    interest_groups,
    report_drift,
    retrieve,
    train_interest,
    train_second_stage,
    training_rows,
)
from recsys.synthetic import generate
from recsys.towers import learn_towers, load_encoder
from recsys.windows import make_windows


@pytest.fixture(scope="module")
def config(tiny_bert):
    small = {
        "encoder": {"model": tiny_bert, "precision": "fp32"},
        "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
        "interest": {"max_groups": 12, "group_size": 4, "precision": "fp32"},
        "windows": {"kind": "last"},
        "device": "cpu",
        "progress": False,
    }
    return config_from_dict(small)


@pytest.fixture(scope="module")
def catalogue_and_window(config) -> tuple[Catalogue, LabelWindow]:
    data = generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)
    tables = validate(data.interactions, data.items)
    catalogue, windows = Catalogue.of(tables.items), make_windows(tables.interactions, config.windows)
    kinds = ("interaction",)
    events = to_events(windows.history_b, catalogue, kinds)
    encoder = load_encoder(config, "cpu")
    towers = learn_towers(encoder, events, kinds, catalogue, config, "cpu", Notes(()), tune=True)
    return catalogue, open_window(
        windows, "b", {}, towers, catalogue, None, config, hide_seen=True, news=False, ease=True
    )


def test_only_users_with_a_taken_candidate_are_kept(catalogue_and_window, config):
    _, window = catalogue_and_window
    found = retrieve(window, config, hide_seen=True)
    taken = found.join(window.labels, on=["user_row", "item_row"], how="semi")
    assert 0 < found["user_row"].n_unique() == taken["user_row"].n_unique() <= len(window.people)


def test_interest_groups_start_with_a_taken_item_and_hold_no_other(catalogue_and_window, config):
    catalogue, window = catalogue_and_window
    users, histories, groups = interest_groups(window, retrieve(window, config, hide_seen=True), catalogue, config)
    assert len(users) == len(set(users)) == len(histories) == len(groups) == config.interest.max_groups
    taken = dict(window.labels.group_by("user_row").agg("item_row").iter_rows())
    for user, group in zip(users, groups, strict=True):
        texts = {catalogue.short_text_of(row) for row in taken[user]}
        assert group[0] in texts
        assert len(group) == 4
        assert not texts & set(group[1:])


def test_a_time_budget_bounds_the_interest_model(catalogue_and_window, config):
    catalogue, window = catalogue_and_window
    hurried = replace(config, time_budget=0.02, interest=replace(config.interest, epochs=10**6))
    found, encoder = retrieve(window, config, hide_seen=True), load_encoder(config, "cpu")
    started = time.monotonic()
    model, users = train_interest(window, found, encoder, catalogue, hurried, "cpu", Notes(()))
    assert time.monotonic() - started < 20
    assert np.isfinite(model.score(["a"], ["b"])).all()
    assert len(users) == config.interest.max_groups


def test_users_of_the_interest_model_are_not_learnt_from(catalogue_and_window, config):
    catalogue, window = catalogue_and_window
    found = retrieve(window, config, hide_seen=True)
    pupils = found["user_row"].unique().sort().head(5).to_numpy()
    everybody = training_rows(window, found, None, catalogue, config)
    others = without_users(everybody, pupils)
    assert others.n_users == everybody.n_users - 5
    assert not set(others.rows["user_row"]) & set(pupils)


def labelled(n_users: int, *, informative: bool, seed: int) -> TrainingSet:
    """Lists of eight with one taken item, whose place the interest score may tell better than stage 1."""
    rng = np.random.default_rng(seed)
    n = 8 * n_users
    label = (np.arange(n) % 8 == np.repeat(rng.integers(0, 8, n_users), 8)).astype(np.int8)
    rows = {
        "user_row": np.repeat(np.arange(n_users, dtype=np.int32), 8),
        "item_row": np.arange(n, dtype=np.int32),
        "label": label,
        "stage1_score": (0.3 * label + rng.random(n)).astype(np.float32),
        "interest_score": (informative * label + rng.random(n)).astype(np.float32),
        "interest_rank": rng.integers(1, 9, n).astype(np.float32),
    }
    return TrainingSet(pl.DataFrame(rows), n_users, 0)


@pytest.mark.parametrize("informative", [True, False])
def test_the_interest_score_is_kept_where_the_later_window_is_better_with_it(config, informative):
    earlier, later = (labelled(150, informative=informative, seed=seed) for seed in (0, 1))
    pupils, notes = np.arange(30, dtype=np.int32), Notes(())
    assert earns_its_place(earlier, later, pupils, config, notes) == informative
    assert ("kept" if informative else "left out") in notes.sentences[-1]
    assert earns_its_place(earlier, later, pupils, replace(config, keep_interest="always"), notes)


def test_a_first_look_asks_for_better_lists_on_average_only(config):
    earlier, later = (labelled(60, informative=True, seed=seed) for seed in (0, 1))
    weak = [
        replace(made, rows=made.rows.with_columns(interest_score=pl.col("interest_score") - 0.8 * pl.col("label")))
        for made in (earlier, later)
    ]
    nobody, notes = np.zeros(0, dtype=np.int32), Notes(())
    assert earns_its_place(*weak, nobody, config, notes, first_look=True)
    assert not notes.sentences
    assert not earns_its_place(*weak, nobody, config, notes)
    assert "left out" in notes.sentences[-1]


def test_an_interest_score_that_few_would_judge_is_left_out_but_not_at_first_look(config):
    earlier, later = (labelled(MIN_RANKER_USERS - 1, informative=True, seed=seed) for seed in (0, 1))
    nobody, notes = np.zeros(0, dtype=np.int32), Notes(())
    assert earns_its_place(earlier, later, nobody, config, notes, first_look=True)
    assert not notes.sentences
    assert not earns_its_place(earlier, later, nobody, config, notes)
    assert f"{MIN_RANKER_USERS - 1} users would judge it" in notes.sentences[-1]


@pytest.mark.parametrize("keep", ["earned", "always"])
def test_few_users_are_scored_where_a_first_look_finds_nothing(catalogue_and_window, config, monkeypatch, keep):
    catalogue, window = catalogue_and_window
    n_rows = retrieve(window, config, hide_seen=True).height
    monkeypatch.setattr(module, "FIRST_LOOK_ROWS", n_rows // 3)
    monkeypatch.setattr(module, "MIN_RANKER_USERS", 1)
    monkeypatch.setattr(module, "earns_its_place", lambda *arguments, first_look=False: not first_look)
    scored = []

    def noted(window, candidates, interest, catalogue, config):
        made = training_rows(window, candidates, interest, catalogue, config)
        if interest is not None:
            scored.append(made.n_users)
        return made

    monkeypatch.setattr(module, "training_rows", noted)
    encoder, kept = load_encoder(config, "cpu"), replace(config, keep_interest=keep)
    second = train_second_stage(window, window, encoder, catalogue, kept, "cpu", Notes(()), hide_seen=True)
    assert (second.interest is None) == (keep == "earned")
    everybody = training_rows(window, retrieve(window, config, hide_seen=True), None, catalogue, config).n_users
    assert scored == [everybody // 3] * 2 if keep == "earned" else [everybody] * 2


@pytest.mark.parametrize("keep", ["earned", "always"])
def test_the_window_between_teaches_where_no_interest_score_knows_its_labels(
    catalogue_and_window, config, monkeypatch, keep
):
    catalogue, window = catalogue_and_window
    monkeypatch.setattr(module, "earns_its_place", lambda *arguments, **named: keep == "always")
    encoder, kept, notes = load_encoder(config, "cpu"), replace(config, keep_interest=keep), Notes(())
    second = train_second_stage(window, window, encoder, catalogue, kept, "cpu", notes, between=window, hide_seen=False)
    assert (second.interest is None) == (keep == "earned")
    told = [sentence.partition(":")[0] for sentence in notes.sentences if "halfway" in sentence]
    assert told == (["ranker", "ranker of new items"] if keep == "earned" else [])


def test_the_number_of_rows_is_bounded_by_leaving_out_users(catalogue_and_window, config):
    catalogue, window = catalogue_and_window
    found = retrieve(window, config, hide_seen=True)
    per_user = found.height / found["user_row"].n_unique()
    few = replace(config, max_ranker_rows=int(35 * per_user))
    assert training_rows(window, found, None, catalogue, few).n_users == 35


def test_a_stronger_kind_of_event_has_a_higher_grade_and_the_greatest_weight_counts(catalogue_and_window):
    catalogue, _ = catalogue_and_window
    item, other = catalogue.items["item_id"].head(2)
    labels = pl.DataFrame(
        {"user_id": ["a", "a", "b"], "item_id": [item, item, other], "event": ["view", "purchase", "scroll"]}
    ).with_columns(weight=pl.Series([2.0, 0.5, 1.5]))
    found = graded(labels, pl.Series(["b", "a"]), catalogue, ("view", "cart", "purchase"))
    assert found.rows() == [(0, 1, 1, 1.5), (1, 0, 3, 2.0)]


def rows_of(n_users: int, seed: int, *, planted: bool) -> TrainingSet:
    """Ten candidates a user, one taken; `planted` says which, unlike stage 1."""
    rng = np.random.default_rng(seed)
    n = 10 * n_users
    frame = pl.DataFrame(
        {
            "user_row": np.repeat(np.arange(n_users, dtype=np.int32), 10),
            "item_row": np.tile(np.arange(10, dtype=np.int32), n_users),
            "stage1_score": rng.random(n),
            "hint": rng.random(n),
            "label": (np.tile(np.arange(10), n_users) == np.repeat(rng.integers(0, 10, n_users), 10)).astype(np.int8),
        }
    )
    shown = "hint" if planted else "stage1_score"
    return TrainingSet(frame.with_columns(pl.col(shown) + pl.col("label")), n_users, 3)


def test_a_column_that_knows_the_future_is_named(config):
    notes = Notes(())
    planted = [rows_of(200, seed, planted=True) for seed in (0, 1)]
    planted = [TrainingSet(made.rows.rename({"hint": "item__price"}), made.n_users, 0) for made in planted]
    train_ranker(*planted, config, notes)
    assert "the feature 'item__price' alone tells what was taken" in notes.sentences[1]
    assert "ignore_columns" in notes.sentences[1]


class TestDrift:
    def test_of_lists_in_another_order_is_warned_of(self, caplog):
        rows = [rows_of(100, seed, planted=False).rows for seed in (0, 1)]
        before, now = (
            given.with_columns(hint=sign * pl.col("stage1_score")) for given, sign in zip(rows, (1, -1), strict=True)
        )
        notes = Notes(())
        with caplog.at_level(logging.WARNING, logger="recsys"):
            report_drift(before, now, 0, notes)
        assert "lists of now apart with an area of " in notes.sentences[0]
        assert "limit 0.85" in notes.sentences[0]
        assert {"hint", "stage1_score"} <= set(notes.sentences[0].rstrip(".").replace(",", "").split())
        assert [record.message for record in caplog.records] == notes.sentences

    def test_of_a_score_that_moved_is_warned_of(self):
        rows = rows_of(100, 0, planted=False).rows
        notes = Notes(())
        report_drift(rows, rows.with_columns(pl.col("stage1_score") + 1.0), 0, notes)
        assert notes.sentences[1].startswith("drift: stage1_score is distributed otherwise now")

    def test_of_rows_alike_warns_of_nothing(self):
        notes = Notes(())
        report_drift(rows_of(100, 0, planted=False).rows, rows_of(100, 1, planted=False).rows, 0, notes)
        assert len(notes.sentences) == 1

    def test_of_a_single_user_is_not_measured(self):
        notes = Notes(())
        report_drift(rows_of(1, 0, planted=False).rows, rows_of(9, 0, planted=False).rows, 0, notes)
        assert not notes.sentences


class TestRanker:
    def test_is_used_where_it_beats_the_blend_on_the_later_window(self, config):
        notes = Notes(())
        ranker = train_ranker(rows_of(200, 0, planted=True), rows_of(100, 1, planted=True), config, notes)
        parts = np.abs(ranker.contributions(rows_of(100, 2, planted=True).rows)).mean(axis=0)[:-1]
        assert ranker.features[parts.argmax()] == "hint"
        assert "200 + 100 users with a taken candidate in windows B and C, 3000 rows; 6 users" in notes.sentences[0]
        assert notes.sentences[1].endswith("lists follow the ranker.")

    def test_a_further_window_teaches_only_when_all_is_decided(self, config, monkeypatch):
        earlier, later, further = (
            rows_of(200, 0, planted=True),
            rows_of(100, 1, planted=True),
            rows_of(50, 2, planted=True),
        )
        rows = []

        class Noted(Ranker):
            def fit(self, train, validation, *rest, **named):
                rows.append((train.height, train["user_row"].n_unique(), validation is None))
                return super().fit(train, validation, *rest, **named)

        monkeypatch.setattr("recsys.ranker_lesson.Ranker", Noted)
        without, with_it = Notes(()), Notes(())
        plain = train_ranker(earlier, later, config, without)
        taught = train_ranker(earlier, later, config, with_it, further=further)
        assert rows == [(2000, 200, False), (3000, 300, True), (2000, 200, False), (3500, 350, True)]
        assert taught.n_trees == plain.n_trees
        assert with_it.sentences[:2] == without.sentences
        assert with_it.sentences[2] == "ranker: 50 users of the window halfway between B and C teach it in the end too."

    def test_is_left_out_where_the_blend_is_perfect_already(self, config):
        notes = Notes(())
        assert train_ranker(rows_of(200, 0, planted=False), rows_of(100, 1, planted=False), config, notes) is None
        assert "difference +0.0000 (+0.0000 to +0.0000); lists follow the blend." in notes.sentences[-1]

    def test_is_left_out_where_few_users_could_teach_it(self, config):
        notes = Notes(())
        assert train_ranker(rows_of(200, 0, planted=True), rows_of(29, 1, planted=True), config, notes) is None
        assert "left out, 29 users would judge it and 30 are needed" in notes.sentences[-1]
        assert train_ranker(rows_of(200, 0, planted=True), rows_of(30, 1, planted=True), config, notes) is not None

    def test_is_left_out_where_few_of_the_later_users_are_left_to_judge(self, config):
        notes = Notes(())
        assert train_ranker(rows_of(10, 0, planted=True), rows_of(190, 1, planted=True), config, notes) is None
        assert "left out, 28 users would judge it" in notes.sentences[-1]

    def test_learns_from_the_later_window_alone_where_the_earlier_is_empty(self, config):
        ranker = train_ranker(rows_of(0, 0, planted=True), rows_of(200, 1, planted=True), config, Notes(()))
        assert ranker is not None


def test_stacked_windows_share_no_user():
    first, second = rows_of(3, 0, planted=True).rows, rows_of(2, 1, planted=True).rows
    assert stacked(first, second)["user_row"].unique().to_list() == [0, 1, 2, 3, 4]
    assert stacked(first.head(0), second).drop("user_row").equals(second.drop("user_row"))
