"""Reasons: what of a history is near an item, what moved its score, and the sentence made of it."""

from __future__ import annotations

from dataclasses import replace

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys import Recommender
from recsys.arguments import hide_seen
from recsys.candidates import to_frame
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig, InvalidData
from recsys.lists import scored_candidates
from recsys.reasons import LIKE, N_CONTRIBUTIONS, N_NEAREST, TEMPLATES
from recsys.requests import known_people, user_ids
from recsys.synthetic import Synthetic, generate

USER = "u00003"
COLUMNS = ["item_id", "rank", "because_text", "because_behaviour", "contributions", "sentence"]


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate(n_users=80, n_items=120, n_topics=5, events_per_user=15, n_cold_items=5)


@pytest.fixture(scope="module")
def fitted(tiny_bert: str, data: Synthetic) -> Recommender:
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 3, "tower_max_steps": 5},
            "n_interest": 0,
            "device": "cpu",
            "progress": False,
        }
    )
    return Recommender(config).fit(data.interactions, data.items)


@pytest.fixture(scope="module")
def history(data: Synthetic) -> list[str]:
    """What the user took, newest first."""
    own = data.interactions.filter(pl.col("user_id") == USER).sort("timestamp", descending=True)
    return own["item_id"].to_list()


def title_of(data: Synthetic, item: str) -> str:
    return data.items.filter(pl.col("item_id") == item)["title"].item()


def with_state(fitted: Recommender, **changes) -> Recommender:
    changed = Recommender(fitted.config)
    changed._fitted = replace(fitted._state, **changes)
    return changed


def test_no_item_asked_for_is_an_empty_table_of_the_same_columns(fitted):
    assert fitted.explain(USER, []).schema == fitted.explain(USER, k=2).schema


def test_the_users_list_is_explained_in_its_order(fitted):
    reasons, lists = fitted.explain(USER, k=6), fitted.recommend([USER], 6)
    assert reasons.columns == COLUMNS
    assert reasons["item_id"].to_list() == lists["item_id"].to_list()
    assert reasons["rank"].to_list() == [1, 2, 3, 4, 5, 6]
    assert reasons["sentence"].n_unique() == 6


def test_items_come_in_the_order_asked_for_each_once(fitted):
    items = fitted.recommend([USER], 6)["item_id"].to_list()
    asked = [items[4], items[0], items[4]]
    assert fitted.explain(USER, asked)["item_id"].to_list() == [items[4], items[0]]
    assert fitted.explain(USER, asked)["rank"].to_list() == [5, 1]


def test_near_by_text_equals_the_cosines_of_the_history(fitted, history):
    state = fitted._state
    reasons = fitted.explain(USER, k=4)
    for item, near in reasons.select("item_id", "because_text").iter_rows():
        own, others = (
            state.towers.text_vectors[state.catalogue.text_rows[state.catalogue.rows_of(pl.Series(ids))]]
            for ids in ([item], history)
        )
        cosines = (others @ own[0]).tolist()
        best = sorted(zip(cosines, history, strict=True), reverse=True)[:N_NEAREST]
        assert [entry["item_id"] for entry in near] == [other for _, other in best]
        assert [entry["similarity"] for entry in near] == pytest.approx([cosine for cosine, _ in best], abs=1e-5)


def test_near_by_behaviour_equals_the_covisitation_weights(fitted, history):
    state = fitted._state
    matrix = state.snapshot.behaviour["covisitation"].toarray()
    rows = state.catalogue.rows_of(pl.Series(history))
    reasons = fitted.explain(USER, k=4)
    assert reasons["because_behaviour"].list.len().max() == N_NEAREST
    for item, near in reasons.select("item_id", "because_behaviour").iter_rows():
        weights = matrix[rows, state.catalogue.rows_of(pl.Series([item]))[0]]
        expected = [(history[place], weights[place]) for place in np.argsort(-weights, kind="stable")[:N_NEAREST]]
        expected = [(other, weight) for other, weight in expected if weight > 0]
        assert [(entry["item_id"], entry["weight"]) for entry in near] == expected


def without_behaviour(snapshot):
    """The same sources, of which one cannot say any more what it comes from."""
    bare = replace(snapshot, behaviour={})
    vars(bare).update({part: getattr(snapshot, part) for part in ("retriever", "statistics", "spaces")})
    return bare


def test_without_covisitation_there_is_nothing_by_behaviour(fitted):
    snapshot = without_behaviour(fitted._state.snapshot)
    reasons = with_state(fitted, snapshot=snapshot).explain(USER, k=3)
    assert reasons["because_behaviour"].to_list() == [[], [], []]


def test_contributions_are_the_largest_of_the_rankers_own(fitted):
    state = fitted._state
    assert state.ranker is not None
    people = known_people(state, user_ids(state, [USER]))
    columns = scored_candidates(
        state, people, 10, fitted.config,
        blocked=~state.catalogue.available, hide_seen=hide_seen("auto", auto=state.hide_seen),
    )  # fmt: skip
    frame = to_frame(columns)
    reasons = fitted.explain(USER, k=3)
    for item, listed in reasons.select("item_id", "contributions").iter_rows():
        row = frame.filter(pl.col("item_row") == state.catalogue.rows_of(pl.Series([item]))[0])
        parts = state.ranker.contributions(row)[0]
        assert parts.sum() == pytest.approx(row["score"].item(), abs=1e-6)
        named = dict(zip(state.ranker.features, parts[:-1], strict=True))
        assert len(listed) == N_CONTRIBUTIONS
        assert [named[entry["feature"]] for entry in listed] == [entry["contribution"] for entry in listed]
        sizes = [abs(entry["contribution"]) for entry in listed]
        assert sizes == sorted(map(abs, named.values()), reverse=True)[:N_CONTRIBUTIONS]
        assert [entry["value"] for entry in listed] == [row[entry["feature"]].item() for entry in listed]


def test_where_the_ranker_is_off_contributions_are_empty(fitted):
    off = with_state(fitted, ranker=None)
    assert off.explain(USER, k=2)["contributions"].to_list() == [[], []]


def test_an_item_that_is_no_candidate_still_has_its_neighbours(fitted, data, history):
    reasons = fitted.explain(USER, [history[0]], filter_seen=True)
    assert reasons["rank"].to_list() == [None]
    assert reasons["contributions"].to_list() == [None]
    assert reasons["because_behaviour"].list.len().item() > 0
    assert history[0] not in [entry["item_id"] for entry in reasons["because_text"][0]]
    assert (
        reasons["sentence"].item().startswith(f"“{title_of(data, history[0])}”: you have taken it before; people who")
    )


def test_sentences_name_titles_in_both_languages(fitted, data):
    english, chinese = (fitted.explain(USER, k=5, language=language) for language in ("en", "zh"))
    seen = set()
    for left, right in zip(english.iter_rows(named=True), chinese.iter_rows(named=True), strict=True):
        title = title_of(data, left["item_id"])
        behaviour, text = left["because_behaviour"][:1], left["because_text"][:1]
        clauses = [f"people who took “{title_of(data, near['item_id'])}” also took it" for near in behaviour]
        clauses += [f"it is like “{title_of(data, n['item_id'])}”" for n in text if n["similarity"] >= LIKE]
        assert left["sentence"] == f"“{title}”: {'; '.join(clauses)}."
        assert right["sentence"].startswith(f"“{title}”：取过“{title_of(data, behaviour[0]['item_id'])}”的人也取了它")
        assert right["sentence"].endswith("。")
        seen.add(len(clauses))
    assert 2 in seen


def test_templates_say_the_same_in_every_language():
    english = TEMPLATES["en"]
    for words in TEMPLATES.values():
        assert {key: text.count("{}") for key, text in words.items()} == {k: t.count("{}") for k, t in english.items()}


def test_somebody_without_history_is_told_that_it_is_popular(fitted, data):
    reasons = fitted.explain("nobody", k=3)
    assert reasons["item_id"].to_list() == fitted.recommend(["nobody"], 3)["item_id"].to_list()
    for item, sentence in reasons.select("item_id", "sentence").iter_rows():
        assert sentence == f"“{title_of(data, item)}”: it is popular now."
    assert reasons["because_text"].to_list() == reasons["because_behaviour"].to_list() == [[], [], []]
    assert reasons["contributions"].to_list() == [[], [], []]
    assert fitted.explain("nobody", k=1, language="zh")["sentence"].item().endswith("：它近期很热门。")


def test_texts_that_the_encoder_cannot_read_are_no_reason(fitted):
    items = fitted._state.catalogue.items.with_columns(title=pl.lit("𓀀𓀁𓀂"))
    catalogue = replace(fitted._state.catalogue, items=items, texts=["𓀀𓀁𓀂"] * len(fitted._state.catalogue.texts))
    assert fitted.explain(USER, k=2)["because_text"].list.len().min() > 0
    assert with_state(fitted, catalogue=catalogue).explain(USER, k=2)["because_text"].to_list() == [[], []]


def test_without_any_link_the_sentence_does_not_invent_one(fitted, data):
    state = fitted._state
    towers = replace(state.towers, text_vectors=np.zeros_like(state.towers.text_vectors))
    bare = with_state(fitted, towers=towers, snapshot=without_behaviour(state.snapshot))
    sentences = bare.explain(USER, bare.items, filter_seen=True)["sentence"].to_list()
    ends = {sentence.split(": ", 1)[1] for sentence in sentences}
    assert ends <= {
        "you have taken it before.",
        "it is popular now.",
        "it fits your history as a whole.",
        "nothing that you took is close to it.",
    }
    assert {"you have taken it before.", "it is popular now."} <= ends


def test_an_item_without_title_goes_by_its_id(fitted):
    items = fitted._state.catalogue.items.with_columns(title=pl.lit(""))
    nameless = with_state(fitted, catalogue=replace(fitted._state.catalogue, items=items))
    item, sentence = nameless.explain(USER, k=1).select("item_id", "sentence").row(0)
    assert sentence.startswith(f"“{item}”: people who took “i")


def test_frames_come_in_the_callers_library(fitted):
    pandas = with_state(fitted)
    pandas._implementation = nw.Implementation.PANDAS
    reasons = pandas.explain(USER, k=2)
    assert isinstance(reasons, pd.DataFrame)
    assert list(reasons.columns) == COLUMNS
    assert set(reasons["because_text"][0][0]) == {"item_id", "similarity"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"language": "fr"}, InvalidConfig, "language='fr' must be one of 'en', 'zh'"),
        ({"k": 0}, InvalidConfig, "k=0 must be a whole number of at least 1"),
        ({"items": ["nothing"]}, InvalidData, "items.item_id: names items that are not in the catalogue"),
        ({"filter_seen": "maybe"}, InvalidConfig, "filter_seen='maybe' must be True, False"),
    ],
)
def test_refused(fitted, given, error, message):
    with pytest.raises(error, match=message):
        fitted.explain(USER, **given)
    with pytest.raises(InvalidData, match="user_id: ids must be String as at fit"):
        fitted.explain(3)
