"""Systems by name and by object: who is asked, who is left out, and that the learned baselines learn."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from ranking.interest import InterestConfig
from recsys.baselines import ItemKNN
from recsys.bench import prepare, run_bench
from recsys.bench.learned import CatalogueTooLarge, Ease, Ials, KnnAndTfIdf, TfIdf
from recsys.bench.names import NO_INTEREST, NO_TEXT, SOURCES, TWO_STAGE
from recsys.bench.systems import (
    DEFAULT,
    ask,
    ask_ours,
    check_name,
    fit_ours,
    variant_of,
    without_text,
)
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, InvalidData, UnknownUsers
from recsys.synthetic import generate
from recsys.text import item_texts

AS_OF = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    late = made.interactions.tail(1).with_columns(
        user_id=pl.lit("stranger"), timestamp=made.interactions["timestamp"].max() + timedelta(hours=1)
    )
    return Dataset(name="synthetic", interactions=pl.concat([made.interactions, late]), items=made.items)


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=2, tower_max_steps=3),
        n_interest=0,
        probabilities=False,
        device="cpu",
        progress=False,
    )


class Echo:
    """Recommends the first items of the catalogue, to known users alone, as "probabilities"."""

    probabilities = True

    def fit(self, interactions, items, *, as_of):
        assert (interactions["timestamp"] < as_of).all()
        self.items, self.known = items["item_id"].head(30), set(interactions["user_id"])
        return self

    def recommend(self, users, k, *, filter_seen):
        if unknown := [user for user in users if user not in self.known]:
            raise UnknownUsers(unknown)
        n = min(k, 30)
        return pl.DataFrame(
            {
                "user_id": np.repeat(users.to_numpy(), n),
                "item_id": self.items.head(n).to_list() * len(users),
                "rank": list(range(1, n + 1)) * len(users),
                "score": [0.1] * n * len(users),
            }
        )


def test_any_object_stands_beside_the_named_ones(data):
    result = run_bench(data, systems={"mine": Echo(), "popular": "popular"}, n_samples=50)
    known, strangers = result.tables
    assert [row.system for row in known.rows] == ["mine", "popular"]
    assert [row.system for row in strangers.rows] == ["popular"]
    assert (strangers.protocol, strangers.n_users) == ("users without history", 1)
    assert "mine has no lists for 1 users of 'users without history'." in result.notes
    calibration = known.rows[0].calibration
    assert known.rows[1].calibration is None
    assert calibration["ece"] == pytest.approx(abs(0.1 - calibration["base_rate"]))
    assert [(found.system, found.other) for found in known.differences] == [("mine", "popular")]


def test_lists_without_a_column_are_refused(data):
    class Poor(Echo):
        def recommend(self, users, k, *, filter_seen):
            return pl.DataFrame({"user_id": users, "item_id": users})

    with pytest.raises(InvalidData, match="lists of poor: the columns rank, score are missing"):
        run_bench(data, systems={"poor": Poor()})


def test_lists_of_what_was_not_asked_for_are_refused(data):
    class Stranger(Echo):
        def recommend(self, users, k, *, filter_seen):
            return super().recommend(users, k, filter_seen=filter_seen).with_columns(pl.lit("nobody").alias(self.wrong))

    for wrong, message in (("user_id", "must be one that was asked about"), ("item_id", "must be in the catalogue")):
        system = Stranger()
        system.wrong = wrong
        with pytest.raises(InvalidData, match=f"lists of mine.{wrong}: {message}.*'nobody'"):
            run_bench(data, systems={"mine": system}, n_samples=10)


def test_no_more_than_the_first_candidates_count(data):
    """Whoever answers with everything finds everything, however late."""

    class Everything(Echo):
        probabilities = False

        def recommend(self, users, k, *, filter_seen):
            return super().recommend(users, k, filter_seen=filter_seen).with_columns(pl.col("rank") + 100)

    result = run_bench(data, systems={"late": Everything(), "early": Echo()}, n_samples=10)
    late, early = (row.metrics for row in result.tables[0].rows)
    assert (late["candidate_recall@100"].mean, late["cold_recall@100"].mean or 0.0) == (0.0, 0.0)
    assert early["candidate_recall@100"].mean > 0


def test_a_system_that_answers_for_some_cuts_is_left_out_with_a_note(data):
    class Moody(Echo):
        fits = 0

        def fit(self, interactions, items, *, as_of):
            Moody.fits += 1
            return super().fit(interactions, items, as_of=as_of)

        def recommend(self, users, k, *, filter_seen):
            if Moody.fits == 2:
                raise UnknownUsers(users.to_list())
            return super().recommend(users, k, filter_seen=filter_seen)

    systems = {"moody": Moody(), "popular": "popular"}
    result = run_bench(data, systems=systems, split="rolling", n_cuts=2, test_share=0.3, n_samples=10)
    assert "moody" not in [row.system for row in result.tables[0].rows]
    assert "moody has no lists for some of the cuts and is left out there." in result.notes


def test_our_systems_may_have_names_of_the_callers(data, config):
    names = {"mine": TWO_STAGE, "again": "buy-again", "nearest": "two-stage: source:similar"}
    answers, notes = ask(prepare(data, config), names)
    assert {answer.system for answer in answers if answer.protocol == "new items only"} == {"mine", "nearest"}
    mine = next(answer for answer in answers if answer.system == "mine")
    assert mine.candidates["rank"].max() > 40
    assert mine.staged
    assert ("again has nothing to say about these data and is left out." in notes) == (
        "again" not in {answer.system for answer in answers}
    )


@pytest.mark.parametrize("stays", [True, False])
def test_where_the_interest_score_is_left_out_the_fit_without_it_is_the_same(data, config, monkeypatch, stays):
    monkeypatch.setattr("recsys.second_stage.earns_its_place", lambda *_, **__: stays)
    reading = replace(config, n_interest=4, interest=InterestConfig(max_groups=8, group_size=4))
    asked = prepare(data, reading)
    answers, notes = ask(asked, [TWO_STAGE, NO_INTEREST])
    lists = {answer.system: answer.lists for answer in answers if answer.protocol == "new items only"}
    alone = ask_ours(asked, fit_ours(asked, variant=NO_INTEREST), names=[NO_INTEREST])
    assert lists[NO_INTEREST].equals(next(one.lists for one in alone if one.protocol == "new items only"))
    assert lists[TWO_STAGE].equals(lists[NO_INTEREST]) == (not stays)
    assert any("the same model as two-stage" in note for note in notes) == (not stays)


def test_nothing_to_measure(data):
    with pytest.raises(InvalidConfig, match="there is no system to measure"):
        run_bench(data, systems=[])
    with pytest.raises(InvalidConfig, match="n_samples=0 must be at least 1"):
        run_bench(data, systems=["popular"], n_samples=0)


def test_names():
    for name in (*DEFAULT, "ease", "tfidf", "ials", "two-stage: source:ease", "two-stage: no interest", NO_TEXT):
        check_name(name)
    assert variant_of("two-stage: source:ease") == TWO_STAGE
    assert variant_of("popular") is None
    with pytest.raises(InvalidConfig, match=r"system 'best' is unknown; there are: popular, .*two-stage: no text"):
        check_name("best")
    with pytest.raises(InvalidConfig, match=r"'two-stage: source:nope' is unknown; .*NAME one of vector, similar"):
        check_name("two-stage: source:nope")


def test_every_source_has_a_name(data, config):
    assert set(fit_ours(prepare(data, config)).recommender.sources) <= set(SOURCES)


def test_one_fit_answers_for_all_its_names(data, config):
    names = ["two-stage: source:covisitation", "ease", TWO_STAGE, "two-stage: source:repeat", NO_TEXT]
    answers, notes = ask(prepare(data, config), names)
    asked = {(answer.protocol, answer.system) for answer in answers}
    assert ("new items only", "two-stage: source:repeat") not in asked  # repeats are rare, so it is no source
    assert ("users without history", TWO_STAGE) in asked
    assert ("users without history", "two-stage: source:covisitation") not in asked
    fits = {answer.system: answer.fit for answer in answers}
    assert fits[TWO_STAGE] is fits["two-stage: source:covisitation"]
    assert fits[TWO_STAGE] is not fits[NO_TEXT]
    assert [answer.system for answer in answers[:2]] == ["two-stage: source:covisitation", "ease"]
    assert [note.startswith("windows: ") for note in notes].count(True) == 1
    assert any(note.startswith("two-stage: no text: stage 1: ") for note in notes)
    assert not any(note.startswith("two-stage: no text: windows: ") for note in notes)
    sources = {answer.system: answer.candidates for answer in answers}["two-stage: source:covisitation"]
    assert sources["source"].unique().to_list() == ["covisitation"]


def test_rolling_cuts_are_pooled(data):
    result = run_bench(data, systems=["popular"], split="rolling", n_cuts=3, test_share=0.3, n_samples=50)
    assert len(result.cuts) == 3
    assert len({cut.test_hash for cut in result.cuts} | {result.test_hash}) == 4
    known = result.tables[0]
    assert known.n_users > 60
    assert known.rows[0].metrics["ndcg@10"].low < known.rows[0].metrics["ndcg@10"].high


def test_a_random_split_warns(data):
    result = run_bench(data, systems=["popular"], split="random", n_samples=20)
    assert result.split == "random"
    assert any(note.startswith("WARNING: a random split leaks the future") for note in result.notes)


def test_a_catalogue_without_a_word(data):
    items = prepare(data).tables.items
    bare = without_text(items.with_columns(brand=pl.lit("Lodge")))
    assert set(item_texts(bare)) == {""}
    assert bare["category_path"].n_unique() == 5
    assert set(bare["brand_name"]) == {"Lodge"}


def test_without_the_interest_score(data, config):
    names = [TWO_STAGE, NO_INTEREST]
    prepared = prepare(data, replace(config, n_interest=4, interest=InterestConfig(max_groups=16, group_size=4)))
    ours = {name: fit_ours(prepared, variant=name) for name in names}
    said = {name: [note for note in found.recommender.notes if "interest" in note] for name, found in ours.items()}
    assert said[TWO_STAGE][0].startswith("interest model: fine-tuned")
    assert said[NO_INTEREST] == ["interest model: switched off (n_interest = 0)."]
    answers = {name: ask_ours(prepared, ours[name], names=[name])[0] for name in names}
    assert all(answer.staged for answer in answers.values())
    stage1 = [answer.candidates.select("user_id", "item_id", "rank") for answer in answers.values()]
    assert stage1[0].equals(stage1[1])  # stage 1 is the same, so what differs is the interest score's
    people = prepared.protocols[0].users
    assert set(answers[NO_INTEREST].lists["user_id"]) == set(people)
    scores = ours[NO_INTEREST].recommender.recommend(people, 5, details=True)
    assert "interest_score" not in scores.columns or scores["interest_score"].null_count() == scores.height


def test_both_fits_stand_in_one_table(data, config):
    prepared = prepare(data, config)
    answers, _ = ask(prepared, [NO_INTEREST, "popular"])
    assert [answer.system for answer in answers if answer.protocol == "new items only"] == [NO_INTEREST, "popular"]
    assert [answer.staged for answer in answers if answer.protocol == "new items only"] == [True, False]


def log_of(**taken):
    rows = [(user, item, AS_OF - timedelta(days=1)) for user, items in taken.items() for item in items]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").with_columns(
        pl.col("timestamp").dt.cast_time_unit("us")
    )


def items_of(**titles):
    return pl.DataFrame(
        {
            "item_id": list(titles),
            "title": list(titles.values()),
            "description": [""] * len(titles),
            "categories": pl.Series([[]] * len(titles), dtype=pl.List(pl.String)),
            "available": [True] * len(titles),
        }
    )


TITLES = {"a": "red shoe", "b": "blue shoe", "c": "green tea", "d": "black tea", "e": "x"}


def test_ease_equals_its_definition():
    log = log_of(u="ab", v="abc", w="cd", x="d")
    found = Ease(regularization=0.5).fit(log, items_of(**TITLES), as_of=AS_OF)
    taken = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=float)
    inverse = np.linalg.inv(taken.T @ taken + 0.5 * np.eye(4))
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)
    lists = found.recommend(pl.Series("user_id", ["u"]), 5, filter_seen=False)
    scores = dict(lists.select("item_id", "score").iter_rows())
    expected = (taken @ weights)[0]
    for item, value in zip("abcd", expected, strict=True):
        if value > 0:
            assert scores[item] == pytest.approx(value, abs=1e-5)
        else:
            assert scores[item] <= 0
    assert lists["item_id"][-1] == "e"
    with pytest.raises(CatalogueTooLarge, match="4 items have interactions and EASE inverts"):
        Ease(max_items=3).fit(log, items_of(**TITLES), as_of=AS_OF)
    with pytest.raises(InvalidConfig, match="regularization is 0; it must be above 0"):
        Ease(regularization=0)


def test_a_method_that_cannot_hold_the_catalogue_is_left_out_with_a_note(data, monkeypatch):
    monkeypatch.setattr("recsys.bench.systems.BASELINES", {"ease": lambda: Ease(max_items=3)})
    answers, notes = ask(prepare(data), ["ease"])
    assert answers == []
    assert notes[0].startswith("ease is left out: 75 items have interactions")


def test_tfidf_finds_what_reads_alike():
    found = TfIdf().fit(log_of(u="a", v="c"), items_of(**TITLES), as_of=AS_OF)
    lists = found.recommend(pl.Series("user_id", ["u", "v", "new"]), 2, filter_seen=True)
    assert lists.filter(rank=1)["item_id"].to_list()[:2] == ["b", "d"]
    assert 0 < lists["score"][0] < 1


def test_item_knn_and_tfidf_add_up_in_shares_of_the_best():
    log, items = log_of(u="ac", v="abc", w="ab", x="cd"), items_of(**TITLES)
    user = pl.Series("user_id", ["u"])
    scores: dict[str, float] = dict.fromkeys("bd", 0.0)
    for single in (ItemKNN(), TfIdf()):
        alone = single.fit(log, items, as_of=AS_OF).recommend(user, 5, filter_seen=False).filter(pl.col("score") > 0)
        for item, score in alone.select("item_id", "score").iter_rows():
            if item in scores:
                scores[item] += score / alone["score"].max()
        assert alone["score"].max() != pytest.approx(1.0)
        assert set(scores) < set(alone["item_id"])
    found = KnnAndTfIdf().fit(log, items, as_of=AS_OF).recommend(user, 3, filter_seen=True)
    assert dict(found.select("item_id", "score").head(2).iter_rows()) == pytest.approx(scores)
    assert found["item_id"][2] == "e"
    with pytest.raises(InvalidConfig, match="n_neighbours is 0; it must be at least 1"):
        KnnAndTfIdf(0)


def test_ials_finds_what_is_taken_together():
    pytest.importorskip("implicit")
    groups = {f"u{n}": "ab" if n % 2 else "cd" for n in range(20)}
    log = log_of(**groups, one="a", two="c")
    lists = (
        Ials(factors=4)
        .fit(log, items_of(**TITLES), as_of=AS_OF)
        .recommend(pl.Series("user_id", ["one", "two"]), 1, filter_seen=True)
    )
    assert lists["item_id"].to_list() == ["b", "d"]


def test_ials_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "implicit.cpu.als", None)
    with pytest.raises(InvalidConfig, match=r"ials needs the package implicit, .*recsys-twostage\[ials\]"):
        Ials().fit(log_of(u="a"), items_of(**TITLES), as_of=AS_OF)
