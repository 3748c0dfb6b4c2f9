"""The straight line of `fit`: who may see which window, and that serving sees what training saw."""

import logging
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy.stats import ks_2samp

from indexing.covisitation import covisitation
from indexing.index import build_index, index_summary
from recsys import Recommender, online, pipeline, towers
from recsys.candidates import candidate_columns, to_frame
from recsys.catalogue import Catalogue
from recsys.config import RecommenderConfig, config_from_dict
from recsys.errors import BundleIncompatible, InvalidConfig
from recsys.events import to_events
from recsys.fitted import read_state
from recsys.notes import Notes
from recsys.pipeline import decide_seen, open_window
from recsys.ranker_lesson import without_users
from recsys.rebuild.refresh import refresh
from recsys.requests import known_people
from recsys.schema import validate
from recsys.second_stage import retrieve, train_interest, training_rows
from recsys.source_lesson import weigh_sources
from recsys.synthetic import generate
from recsys.towers import learn_towers, load_encoder
from recsys.windows import make_windows


def config_for(tiny_bert: str, **values: object) -> RecommenderConfig:
    small = {
        "encoder": {"model": tiny_bert, "precision": "fp32"},
        "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
        "interest": {"max_groups": 8, "group_size": 4, "precision": "fp32"},
        "n_interest": 4,
        "device": "cpu",
        "progress": False,
    }
    return config_from_dict({**small, **values})


@pytest.fixture(scope="module")
def data():
    return generate(n_users=60, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)


@pytest.fixture(scope="module")
def tables(data):
    return validate(data.interactions, data.items)


class Line:
    """The steps of `fit` up to window C, with what each of them learnt."""

    def __init__(self, tables, config: RecommenderConfig) -> None:
        notes = Notes(())
        self.catalogue = Catalogue.of(tables.items)
        windows = make_windows(tables.interactions, config.windows)
        encoder = load_encoder(config, "cpu")
        kinds = tuple(windows.history_b["event"].unique().sort())
        before_b = to_events(windows.history_b, self.catalogue, kinds)
        self.towers = learn_towers(encoder, before_b, kinds, self.catalogue, config, "cpu", notes, tune=True)
        rest = (self.towers, self.catalogue, None, config)
        self.b = open_window(windows, "b", {}, *rest, hide_seen=True, news=False, ease=True)
        found = retrieve(self.b, config, hide_seen=True)
        self.weights = weigh_sources(found, self.b.labels, self.b.snapshot.popularity)
        self.b = self.b.weighted(self.weights)
        candidates = retrieve(self.b, config, hide_seen=True)
        self.interest, self.pupils = train_interest(self.b, candidates, encoder, self.catalogue, config, "cpu", notes)
        rows_b = training_rows(self.b, candidates, self.interest, self.catalogue, config)
        self.rows_b = without_users(rows_b, self.pupils)
        self.c = open_window(windows, "c", self.weights, *rest, hide_seen=True, news=False, ease=True)
        nothing = np.zeros(len(self.catalogue), dtype=np.bool_)
        columns = candidate_columns(
            self.c.people, self.c.snapshot, self.interest, self.catalogue, config, blocked=nothing, hide_seen=True
        )
        self.rows_c = to_frame(columns)


def rewritten(tables, start, seed: int):
    """The same rows up to `start`; later ones keep their times and users but name other items."""
    rng = np.random.default_rng(seed)
    items = tables.items["item_id"].to_numpy()
    later = (tables.interactions["timestamp"] >= start).to_numpy()
    drawn = np.where(later, rng.choice(items, len(later)), tables.interactions["item_id"].to_numpy())
    edited = tables.interactions.with_columns(item_id=pl.Series(drawn), weight=pl.lit(1.0) + pl.Series(later * 2.0))
    return validate(edited, tables.items)


@pytest.fixture(scope="module")
def time_config(tiny_bert: str) -> RecommenderConfig:
    return config_for(tiny_bert, windows={"kind": "time", "label_share": 0.15})


@pytest.fixture(scope="module")
def untouched(tables, time_config) -> Line:
    return Line(tables, time_config)


class TestNoRowOfAWindowChangesWhatWasLearntBeforeIt:
    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10_000))
    def test_rows_from_the_start_of_b_on(self, seed, tables, time_config, untouched):
        windows = make_windows(tables.interactions, time_config.windows)
        edited = Line(rewritten(tables, windows.start_b, seed), time_config)
        assert edited.towers.encoder.fingerprint() == untouched.towers.encoder.fingerprint()
        np.testing.assert_array_equal(edited.towers.item_vectors, untouched.towers.item_vectors)
        np.testing.assert_array_equal(edited.towers.searchable, untouched.towers.searchable)
        for part in ("item_tower", "history_encoder"):
            for name, tensor in getattr(untouched.towers, part).state_dict().items():
                assert tensor.equal(getattr(edited.towers, part).state_dict()[name])
        assert edited.towers.words.vocabulary == untouched.towers.words.vocabulary
        assert_frame_equal(edited.b.people.history, untouched.b.people.history)
        assert_frame_equal(edited.b.snapshot.statistics, untouched.b.snapshot.statistics)
        assert set(edited.b.snapshot.behaviour) == {"covisitation", "ease"}
        for name, matrix in untouched.b.snapshot.behaviour.items():
            assert (edited.b.snapshot.behaviour[name] != matrix).nnz == 0
        assert not edited.b.labels.equals(untouched.b.labels)  # the edit did reach what may be reached

    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seed=st.integers(0, 10_000))
    def test_rows_from_the_start_of_c_on(self, seed, tables, time_config, untouched):
        windows = make_windows(tables.interactions, time_config.windows)
        edited = Line(rewritten(tables, windows.start_c, seed), time_config)
        assert edited.weights == untouched.weights
        assert_frame_equal(edited.rows_b.rows, untouched.rows_b.rows)  # with their labels
        histories, texts = ["abc def"] * 3, ["abc", "xyz", "def abc"]
        np.testing.assert_array_equal(
            edited.interest.score(histories, texts), untouched.interest.score(histories, texts)
        )
        assert_frame_equal(edited.rows_c, untouched.rows_c)  # every candidate, score and feature of window C
        assert not edited.c.labels.equals(untouched.c.labels)


def test_labels_of_last_windows_change_nothing_learnt_before_them(tables, tiny_bert):
    config = config_for(tiny_bert, windows={"kind": "last"})
    before = Line(tables, config)
    last = pl.int_range(pl.len() - 1, -1, -1).over("user_id") == 0
    other = pl.col("item_id").reverse().over("user_id")
    changed = tables.interactions.sort("user_id", "timestamp", "item_id").with_columns(
        item_id=pl.when(last).then(other).otherwise("item_id")
    )
    after = Line(validate(changed, tables.items), config)
    assert after.towers.encoder.fingerprint() == before.towers.encoder.fingerprint()
    np.testing.assert_array_equal(after.towers.item_vectors, before.towers.item_vectors)
    assert_frame_equal(after.rows_c, before.rows_c)
    assert not after.c.labels.equals(before.c.labels)


# The ranker learns from scores of models that never saw its labels, and serving gives it the same kind of scores.


@pytest.fixture(scope="module")
def drilled(tiny_bert):
    contrastive = {"encoder_steps": 2, "tower_max_steps": 300, "tower_epochs": 100, "n_negatives": 64}
    return config_for(tiny_bert, windows={"kind": "time"}, contrastive=contrastive, keep_interest="always")


@pytest.fixture(scope="module")
def many():
    """More users: with a label or two from each of 60 the scores differ by chance alone."""
    return generate(n_users=160, n_items=80, n_topics=4, events_per_user=12, n_cold_items=4)


@pytest.fixture(scope="module")
def training(many, drilled):
    return Line(validate(many.interactions, many.items), drilled)


@pytest.fixture(scope="module")
def served(many, drilled):
    recommender = Recommender(drilled).fit(many.interactions, many.items)
    state = recommender._state
    columns = candidate_columns(
        known_people(state, recommender.users),
        state.snapshot,
        state.interest,
        state.catalogue,
        drilled,
        blocked=np.zeros(len(state.catalogue), dtype=np.bool_),
        hide_seen=True,
    )
    return to_frame(columns)


@pytest.mark.parametrize("name", ["vector", "covisitation", "ease", "lexical", "interest", "stage1"])
def test_every_score_is_distributed_alike(name, training, served):
    column = f"{name}_score"
    shift = ks_2samp(training.rows_c[column].drop_nulls(), served[column].drop_nulls()).statistic
    assert shift < 0.2


@pytest.mark.parametrize("space", ["vector", "text", "covisitation"])
def test_every_similarity_is_distributed_alike(space, training, served):
    for column in (f"similarity_{space}_{detail}" for detail in ("max", "mean", "last")):
        shift = ks_2samp(training.rows_c[column].drop_nulls(), served[column].drop_nulls()).statistic
        assert shift < 0.2, column


def test_towers_that_had_learnt_the_labels_would_score_them_higher(many, training, served, drilled):
    taken = training.c.labels.join(training.rows_c, on=["user_row", "item_row"])["vector_score"]
    users = many.interactions["user_id"].unique().sort()
    truth = many.truth.select(
        user_row=pl.col("user_id").replace_strict(users, range(len(users)), return_dtype=pl.Int32),
        item_row=pl.Series(training.catalogue.rows_of(many.truth["item_id"]), dtype=pl.Int32),
    )
    next_taken = truth.join(served, on=["user_row", "item_row"])["vector_score"]
    kinds = training.towers.event_kinds
    events = to_events(validate(many.interactions, many.items).interactions, training.catalogue, kinds)
    # All labels are learnt, and none is set aside to stop before they are known by heart.
    to_the_end = replace(drilled, contrastive=replace(drilled.contrastive, validation_users=0, tower_epochs=300))
    towers = learn_towers(
        load_encoder(drilled, "cpu"), events, kinds, training.catalogue, to_the_end, "cpu", Notes(()), tune=True
    )
    people = training.c.people
    vectors = towers.history_encoder.encode(people.histories, towers.item_vectors)
    rows = training.c.labels
    memorised = (vectors[rows["user_row"]] * towers.item_vectors[rows["item_row"]]).sum(axis=1)
    # Serving scores a little higher than window C: there, the events of B lie between training and asking.
    assert ks_2samp(taken, next_taken).statistic < 0.35
    honest_excess, memorised_excess = (
        ks_2samp(scores, next_taken, alternative="less").statistic for scores in (taken, memorised)
    )
    assert memorised_excess > 0.2
    assert memorised_excess > 1.5 * honest_excess


class TestSeen:
    def frame(self, items: list[str]) -> pl.DataFrame:
        return pl.DataFrame({"user_id": ["u"] * len(items), "item_id": items})

    @pytest.mark.parametrize(("items", "hide"), [(list("abcdefghij"), True), (list("aabbccddee"), False)])
    def test_follows_the_share_of_repeats_and_says_so(self, items, hide):
        notes = Notes(())
        assert decide_seen(self.frame(items), RecommenderConfig(), notes) is hide
        assert ("are hidden" if hide else "are shown") in notes.sentences[0]


def test_an_encoder_that_cannot_be_had_is_a_configuration_error(tables):
    config = config_from_dict({"encoder": {"model": "nobody/has-this-model"}, "device": "cpu", "progress": False})
    with pytest.raises(InvalidConfig, match="nobody/has-this-model"):
        pipeline.fit(tables, config, "cpu")


def test_without_interest_and_with_few_users_it_says_what_is_left_out(tiny_bert, caplog):
    small = generate(n_users=10, n_items=40, n_topics=2, events_per_user=8, n_cold_items=0)
    config = config_for(tiny_bert, n_interest=0)
    with caplog.at_level(logging.INFO, logger="recsys"):
        notes = Recommender(config).fit(small.interactions, small.items).notes
    assert any("interest model: switched off" in note for note in notes)
    assert any("ranker: left out, " in note and "and 30 are needed" in note for note in notes)


def test_covisitation_is_counted_once_for_the_same_events_and_the_served_index_is_measured(tiny_bert, monkeypatch):
    small = generate(n_users=10, n_items=40, n_topics=2, events_per_user=8, n_cold_items=0)
    counted, histories = [], []

    def noted(given, *arguments):
        histories.append(given.item_rows.tolist())
        counted.append(covisitation(given, *arguments))
        return counted[-1]

    monkeypatch.setattr(towers, "covisitation", noted)
    config = config_for(tiny_bert, n_interest=0, probabilities=False)
    state = Recommender(config).fit(small.interactions, small.items)._state
    assert len(histories) == 3  # before window B, before window C, all
    assert len({tuple(rows) for rows in histories}) == 3
    served = state.snapshot.behaviour["covisitation"]
    alone = covisitation(towers.histories_of(state.events.with_columns(weight=1.0)), 40, config.covisitation)
    assert (served != alone).nnz == 0
    said = [note for note in state.notes if note.startswith("renewal: ")]
    assert len(said) == 1
    assert index_summary(state.towers.index) in said[0]


def test_a_short_search_is_served_from_disk(tiny_bert, tmp_path):
    small = generate(n_users=60, n_items=80, n_topics=2, events_per_user=8, n_cold_items=0)
    index = {"kind": "exact", "search_dim": 16, "target_recall": 0.9}
    config = config_for(tiny_bert, n_interest=0, probabilities=False, index=index)
    fitted = Recommender(config).fit(small.interactions, small.items)
    found = fitted._state.towers.index
    assert "16 of 256 dimensions" in index_summary(found)
    assert found.recall >= 0.9
    fitted.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model")
    vectors, opened = fitted._state.towers.item_vectors, loaded._state.towers.index
    for ours, theirs in zip(
        *(one.coarse.search(one._shortening.of_queries(vectors), 9) for one in (found, opened)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    users = small.interactions["user_id"].unique().sort()
    assert_frame_equal(loaded.recommend(users, 5), fitted.recommend(users, 5))
    (tmp_path / "model" / "index" / "shortening.npy").unlink()  # as before vectors were made short by projections
    with pytest.raises(BundleIncompatible, match=r"fewer dimensions as this version does not\. Fit again"):
        read_state(tmp_path / "model")


def test_every_index_is_built_for_the_users_of_its_moment(tiny_bert, monkeypatch, tmp_path):
    small = generate(n_users=30, n_items=40, n_topics=2, events_per_user=8, n_cold_items=0)
    asked = []

    def noted(vectors, config, *, device, queries):
        asked.append(queries())
        return build_index(vectors, config, device=device, queries=queries)

    def expected(state):
        histories = towers.histories_of(state.events.with_columns(weight=1.0))
        return towers.likely_queries(histories, state.towers.history_encoder, state.towers.item_vectors, seed=0)

    for module in (towers, online):
        monkeypatch.setattr(module, "build_index", noted)
    config = config_for(tiny_bert, n_interest=0, probabilities=False)
    fitted = Recommender(config).fit(small.interactions, small.items)
    np.testing.assert_allclose(asked[-1], expected(fitted._state), atol=1e-6)
    fewer = validate(small.interactions.head(150), small.items)
    again = refresh(fitted._state, fewer, config, device="cpu").fitted
    np.testing.assert_allclose(asked[-1], expected(again), atol=1e-6)
    n_built = len(asked)
    fitted.upsert_items(small.items[:1].with_columns(title=pl.lit("other words")))
    fitted.delete_users(small.interactions["user_id"].unique().sort().head(10))
    fitted.save(tmp_path / "model")
    assert len(asked) == n_built + 1
    np.testing.assert_allclose(asked[-1], expected(fitted._state), atol=1e-6)


def test_likely_queries_are_in_turn_users_and_vectors_like_items(untouched):
    stage1 = untouched.towers
    histories = towers.histories_of(untouched.c.snapshot.events.with_columns(weight=1.0))
    made = towers.likely_queries(histories, stage1.history_encoder, stage1.item_vectors, seed=0)
    assert made.shape == (2 * towers.QUERIES, stage1.item_vectors.shape[1])
    assert len(np.unique(made[::2], axis=0)) == len(histories)  # they come again, since they are few
    assert len(np.unique(made[1::2], axis=0)) > 0.9 * towers.QUERIES
    everybody = stage1.history_encoder.encode(histories, stage1.item_vectors)
    assert ((made[::2] @ everybody.T).max(axis=1) > 0.9999).all()
    np.testing.assert_allclose(np.linalg.norm(made[1::2], axis=1), 1.0, atol=1e-5)


def test_a_future_event_in_a_history_is_refused(untouched, time_config):
    window = untouched.c
    late = window.people.moments["moment"].max() + timedelta(days=1).total_seconds()
    people = type(window.people)(window.people.history.with_columns(seconds=pl.lit(late)), window.people.moments, None)
    nothing = np.zeros(len(untouched.catalogue), dtype=np.bool_)
    with pytest.raises(ValueError, match="lie at or after"):
        candidate_columns(
            people, window.snapshot, None, untouched.catalogue, time_config, blocked=nothing, hide_seen=True
        )
