from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing import retriever as module
from indexing.covisitation import CovisitationConfig, covisitation
from indexing.exact import ExactIndex
from indexing.history import Histories, HistoryConfig, HistoryEncoder
from indexing.neighbour_cache import NeighbourCache
from indexing.retriever import SOURCES, NewSource, Retriever, RetrieverConfig, build_retriever
from indexing.sources import (
    Block,
    LookalikeSource,
    NeighbourSource,
    PopularitySource,
    SimilarSource,
    VectorSource,
    first_shown,
)

N_ITEMS, DIM = 30, 6
NAMES = tuple(name for name in SOURCES if name != "new")  # which is there only where it is asked for
SEARCHABLE = np.arange(N_ITEMS) % 5 != 0
NOTHING = np.zeros(N_ITEMS, dtype=np.bool_)
CONFIG = RetrieverConfig(
    vector=6,
    covisitation=5,
    ease=3,
    lexical=4,
    lookalike=4,
    similar=3,
    new=5,
    category=3,
    repeat=3,
    popular=4,
    recent=4,
    trending=2,
    n_candidates=12,
    lexical_length=2,
    similar_length=2,
)
DEPTHS = {name: getattr(CONFIG, name) for name in (*SOURCES, "lexical_length", "similar_length")}
ASKED = ([3, 1, 4, 1, 5], [9, 2, 6], [], [5])
LISTS = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=12), min_size=1, max_size=6)
MASKS = st.lists(st.booleans(), min_size=N_ITEMS, max_size=N_ITEMS).map(np.array)


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.array([row for rows in lists for row in rows], dtype=np.int32))


@functools.cache
def known_lists() -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(0)
    return tuple(tuple(rng.zipf(1.4, size=8) % 25) for _ in range(40))


@functools.cache
def make_retriever(
    config: RetrieverConfig = CONFIG, weights: tuple[tuple[str, float], ...] = (), new: tuple[int, ...] | None = None
) -> Retriever:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = HistoryEncoder(HistoryConfig(max_length=8, dim=8), item_dim=DIM)
    histories = histories_of([list(rows) for rows in known_lists()])
    words = sp.csr_matrix(sp.random_array((10, N_ITEMS), density=0.3, format="csr", dtype=np.float32, rng=rng))
    words.sort_indices()
    itself = sp.csr_matrix(sp.eye_array(N_ITEMS, dtype=np.float32, format="csr"))
    identity, power = np.arange(N_ITEMS), config.history_power
    pairs = covisitation(histories, N_ITEMS, CovisitationConfig())
    company = NeighbourSource(pairs, identity, config.lexical_length, power)
    return build_retriever(
        config,
        encoder=encoder,
        item_vectors=vectors,
        index=ExactIndex(vectors, device="cpu"),
        searchable=SEARCHABLE,
        neighbours={
            "covisitation": NeighbourSource(pairs, identity, config.history_length, power),
            "lexical": NeighbourSource(words, np.arange(N_ITEMS) % 10, config.lexical_length, power),
            "lookalike": LookalikeSource(company, np.arange(N_ITEMS) % 10, words),
            "ease": NeighbourSource(sp.csr_matrix(pairs.T), identity, config.history_length, config.lasting_power),
            "category": NeighbourSource(words, np.arange(N_ITEMS) % 10, 3, power),
            "repeat": NeighbourSource(itself, identity, config.history_length, power),
        },
        rows=histories.item_rows,
        weights=dict(weights),
        new=None if new is None else np.isin(np.arange(N_ITEMS), new),
    )


def retrieve(lists, *, blocked=NOTHING, hide_seen=False, n_candidates=None, retriever=None):
    asked = retriever or make_retriever()
    return asked.retrieve(histories_of(lists), blocked=blocked, hide_seen=hide_seen, n_candidates=n_candidates)


def top(opened, user=0):
    """What a source proposes to one user, best first."""
    return opened.items[opened.users == user].tolist()


def per_user(found, n_users):
    """Item rows of each user in order."""
    return [found.items[found.users == user].tolist() for user in range(n_users)]


class TestFilters:
    @settings(max_examples=40, deadline=None)
    @given(LISTS, MASKS, st.booleans(), st.sampled_from([None, 3, 40]))
    def test_hidden_items_never_appear_and_nothing_appears_twice(self, lists, blocked, hide_seen, n_candidates):
        found = retrieve(lists, blocked=blocked, hide_seen=hide_seen, n_candidates=n_candidates)
        assert not blocked[found.items].any()
        for user, items in enumerate(per_user(found, len(lists))):
            assert len(items) == len(set(items)) <= (n_candidates or CONFIG.n_candidates)
            if hide_seen:
                assert not set(items) & set(lists[user])

    def test_an_allow_list_of_one_is_found_however_deep_it_lies(self):
        for item in (1, 2, 3):
            blocked = np.ones(N_ITEMS, dtype=np.bool_)
            blocked[item] = False
            found = retrieve([[7, 8]], blocked=blocked)
            assert found.items.tolist() == [item]
            assert found.ranks[0, 0] == 1

    def test_what_is_hidden_does_not_shorten_the_vector_list(self):
        seen = list(range(0, N_ITEMS, 2))
        found = retrieve([seen], hide_seen=True)
        assert np.isfinite(found.ranks[:, 0]).sum() == CONFIG.vector

    def test_where_everything_is_hidden_nothing_comes_back(self):
        found = retrieve([[1], []], blocked=~NOTHING)
        assert found.items.shape == (0,)
        assert found.scores.shape == found.ranks.shape == (0, len(NAMES))


@pytest.fixture(scope="module")
def found():
    return retrieve(ASKED)


@pytest.fixture(scope="module")
def opened():
    """Each source, opened for the users asked for."""
    block = Block(histories_of(ASKED), NOTHING, False)
    return {name: source.open(block, n) for name, (source, n) in make_retriever().sources.items()}


class TestCandidates:
    def test_have_the_promised_shapes(self, found):
        n = len(found.items)
        assert found.sources == NAMES
        assert found.users.dtype == found.items.dtype == np.int64
        assert found.scores.shape == found.ranks.shape == (n, len(NAMES))
        assert found.scores.dtype == found.ranks.dtype == found.blend.dtype == np.float32

    def test_are_scored_by_every_source(self, found, opened):
        for column, name in enumerate(NAMES):
            expected = opened[name].score(found.users, found.items)
            np.testing.assert_array_equal(found.scores[:, column], expected)

    def test_rank_is_the_place_in_the_sources_own_list(self, found, opened):
        for column, name in enumerate(NAMES):
            source = opened[name]
            for user in range(len(ASKED)):
                mine = found.users == user
                places = dict(zip(found.items[mine].tolist(), found.ranks[mine, column].tolist(), strict=True))
                assert {item: rank for item, rank in places.items() if rank == rank} == {
                    item: place for place, item in enumerate(top(source, user), start=1) if item in places
                }

    def test_are_the_union_of_the_lists_where_no_cap_cuts(self, opened):
        found = retrieve(ASKED, retriever=make_retriever(RetrieverConfig(**DEPTHS, n_candidates=N_ITEMS)))
        for user, items in enumerate(per_user(found, len(ASKED))):
            union = {item for source in opened.values() for item in top(source, user)}
            assert set(items) == union

    def test_blend_is_the_sum_of_weighted_reciprocal_ranks(self):
        weights = {"vector": 3.0, "popular": 0.5}
        found = retrieve(ASKED, retriever=make_retriever(CONFIG, tuple(weights.items())))
        expected = [
            sum(weights.get(name, 1.0) / (20 + rank) for name, rank in zip(NAMES, ranks, strict=True) if rank == rank)
            for ranks in found.ranks.tolist()
        ]
        np.testing.assert_allclose(found.blend, expected, rtol=1e-5)

    def test_some_items_count_more_in_one_source_whatever_is_asked_later(self):
        plain, times = make_retriever(), np.where(np.arange(N_ITEMS) % 3 == 0, np.float32(4.0), np.float32(1.0))
        boosted = Retriever(plain.sources, n_candidates=N_ITEMS, item_weights={"lexical": times})
        for asked in (boosted, boosted.weighted({"lexical": 0.5}), boosted.only(["popular", "lexical"])):
            found = retrieve(ASKED, retriever=asked)
            expected = [
                sum(
                    asked.weights.get(name, 1.0) * (times[item] if name == "lexical" else 1.0) / (20 + rank)
                    for name, rank in zip(found.sources, ranks, strict=True)
                    if rank == rank
                )
                for item, ranks in zip(found.items, found.ranks.tolist(), strict=True)
            ]
            np.testing.assert_allclose(found.blend, expected, rtol=1e-5)
        assert found.sources == ("lexical", "popular")

    def test_come_by_user_then_blend_then_item(self, found):
        keys = list(zip(found.users.tolist(), (-found.blend).tolist(), found.items.tolist(), strict=True))
        assert keys == sorted(keys)

    def test_a_user_without_history_gets_what_is_popular(self, found):
        counts = np.bincount([item for rows in known_lists() for item in rows], minlength=N_ITEMS)
        mine = found.users == 2
        popular = found.ranks[mine, NAMES.index("popular")]
        by_rank = found.items[mine][np.argsort(popular)][: CONFIG.popular]
        assert by_rank.tolist() == np.lexsort((np.arange(N_ITEMS), -counts))[: CONFIG.popular].tolist()
        assert np.isnan(found.ranks[mine][:, :4]).all()
        assert not found.scores[mine][:, :4].any()

    def test_of_nobody_are_none(self):
        found = retrieve([])
        assert found.users.shape == found.items.shape == (0,)
        assert found.scores.shape == (0, len(NAMES))


class TestDepth:
    def test_the_cap_keeps_the_best_of_the_blend(self):
        lists = [[3, 1, 4], [1, 5]]
        few, many = retrieve(lists, n_candidates=4), retrieve(lists)
        assert per_user(few, 2) == [items[:4] for items in per_user(many, 2)]

    def test_more_than_the_configured_number_asks_every_source_for_more(self):
        counts = np.bincount([item for rows in known_lists() for item in rows], minlength=N_ITEMS)
        found = retrieve([[3, 1, 4]], n_candidates=13)  # one more than configured: twice as deep
        lengths = np.isfinite(found.ranks).sum(axis=0)
        deep = retrieve([[3, 1, 4]], n_candidates=24)
        assert np.nanmax(deep.ranks, axis=0).tolist()[0] == 2 * CONFIG.vector
        assert np.nanmax(deep.ranks[:, NAMES.index("popular")]) == min(2 * CONFIG.popular, np.count_nonzero(counts))
        assert len(found.items) == 13
        assert lengths.max() > CONFIG.vector


class TestInvariance:
    @settings(max_examples=20, deadline=None)
    @given(LISTS, st.booleans())
    def test_many_users_equal_one_by_one(self, lists, hide_seen):
        together = retrieve(lists, hide_seen=hide_seen)
        for user, rows in enumerate(lists):
            alone, mine = retrieve([rows], hide_seen=hide_seen), together.users == user
            assert together.items[mine].tolist() == alone.items.tolist()
            np.testing.assert_array_equal(together.ranks[mine], alone.ranks)
            np.testing.assert_allclose(together.scores[mine], alone.scores, atol=1e-6)

    def test_permuting_users_permutes_the_answers(self):
        lists = [list(rows) for rows in known_lists()[:7]] + [[]]
        order = [3, 7, 0, 5, 1, 2, 6, 4]
        straight, permuted = per_user(retrieve(lists), 8), per_user(retrieve([lists[user] for user in order]), 8)
        assert permuted == [straight[user] for user in order]

    def test_blocks_of_users_change_nothing(self, monkeypatch):
        lists = [list(rows) for rows in known_lists()[:7]]
        whole = retrieve(lists)
        monkeypatch.setattr(module, "USERS_PER_BLOCK", 3)
        blocks = retrieve(lists)
        for name in ("users", "items", "ranks", "blend"):
            np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))
        np.testing.assert_allclose(blocks.scores, whole.scores, atol=1e-6)

    def test_shows_progress_when_asked(self, capfd):
        make_retriever().retrieve(histories_of([[1]]), blocked=NOTHING, hide_seen=False, progress=True)
        assert "retrieve" in capfd.readouterr().err


class TestVectorSource:
    @settings(max_examples=20, deadline=None)
    @given(LISTS)
    def test_never_proposes_an_item_without_text_and_gives_it_no_score(self, lists):
        found = retrieve(lists)
        without = ~SEARCHABLE[found.items]
        assert np.isnan(found.ranks[without, 0]).all()
        assert not found.scores[without, 0].any()

    def test_lists_the_nearest_items(self):
        source = make_retriever().sources["vector"][0]
        assert isinstance(source, VectorSource)
        histories = histories_of([[3, 9, 4]])
        cosines = (source.encoder.encode(histories, source.item_vectors) @ source.item_vectors.T)[0]
        cosines[~SEARCHABLE] = -np.inf
        found = source.open(Block(histories, NOTHING, False), 5)
        assert top(found) == np.argsort(-cosines)[:5].tolist()

    def test_proposes_nothing_where_no_item_has_text(self):
        known = make_retriever().sources["vector"][0]
        assert isinstance(known, VectorSource)
        source = VectorSource(known.encoder, known.item_vectors, known.index, NOTHING)
        assert top(source.open(Block(histories_of([[1]]), NOTHING, False), 5)) == []


class TestNeighbourSource:
    matrix = np.random.default_rng(3).integers(0, 4, size=(4, 7)).astype(np.float32)
    keys = np.array([0, 1, 2, 3, 0, 1, 2])

    @pytest.mark.parametrize("power", [0.0, 0.7])
    def test_sums_the_neighbours_of_the_newest_events(self, power):
        source = NeighbourSource(sp.csr_matrix(self.matrix), self.keys, max_length=3, power=power)
        lists = [[6, 0, 1, 1], [], [2]]
        opened = source.open(Block(histories_of(lists), np.zeros(7, dtype=np.bool_), False), 7)
        for user, rows in enumerate(lists):
            expected = np.zeros(7)
            for place, row in enumerate(rows[::-1][:3]):
                expected += (1 + place) ** -power * self.matrix[self.keys[row]]
            np.testing.assert_allclose(opened.score(np.full(7, user), np.arange(7)), expected, rtol=1e-6)

    def test_lists_the_best_first_and_nothing_hidden(self):
        matrix = sp.csr_matrix(np.array([[0, 2, 5, 2, 1]], dtype=np.float32))
        source = NeighbourSource(matrix, np.zeros(5, dtype=np.int64), max_length=3, power=1.0)
        hidden = np.array([False, False, True, False, False])
        block = Block(histories_of([[0]]), hidden, False)
        assert top(source.open(block, 2)) == [1, 3]
        assert top(source.open(block, 9)) == [1, 3, 4]

    def test_an_item_without_a_key_has_no_neighbours(self):
        matrix = sp.csr_matrix(np.ones((1, 3), dtype=np.float32))
        source = NeighbourSource(matrix, np.array([0, -1, -1]), max_length=9, power=0.0)
        opened = source.open(Block(histories_of([[1, 2], [0, 1]]), np.zeros(3, dtype=np.bool_), True), 3)
        assert (top(opened, 0), top(opened, 1)) == ([], [2])


class TestLookalikeSource:
    def source(self) -> LookalikeSource:
        known = make_retriever().sources["lookalike"][0]
        assert isinstance(known, LookalikeSource)
        return known

    @settings(max_examples=30, deadline=None)
    @given(LISTS)
    def test_equals_a_loop_over_company_and_its_likes(self, lists):
        source = self.source()
        company, alike = source.company.neighbours.toarray(), source.alike.toarray()
        opened = source.open(Block(histories_of(lists), NOTHING, False), N_ITEMS)
        for user, rows in enumerate(lists):
            expected = np.zeros(N_ITEMS)
            for place, row in enumerate(rows[::-1][: CONFIG.lexical_length]):
                for near in range(N_ITEMS):
                    worth = (1 + place) ** -CONFIG.history_power * company[row, near]
                    expected += worth * alike[source.text_rows[near]]
            np.testing.assert_allclose(opened.score(np.full(N_ITEMS, user), np.arange(N_ITEMS)), expected, rtol=1e-4)
            assert set(top(opened, user)) == set(np.flatnonzero(expected))

    def test_finds_an_item_that_nobody_took_by_the_company_of_its_likes(self):
        # 1 is taken after 0; 2 is new and its text is like that of 1.
        company = NeighbourSource(sp.csr_matrix(np.float32([[0, 1, 0], [0, 0, 0], [0, 0, 0]])), np.arange(3), 3, 1.0)
        alike = sp.csr_matrix(np.float32([[0, 0, 0], [0, 0, 1], [0, 0, 0]]))
        source = LookalikeSource(company, np.arange(3), alike)
        assert top(source.open(Block(histories_of([[0]]), np.zeros(3, dtype=np.bool_), True), 5)) == [2]


class TestSimilarSource:
    def source(self, *, searchable=SEARCHABLE, n_neighbours=4):
        known = make_retriever().sources["vector"][0]
        assert isinstance(known, VectorSource)
        nearest = NeighbourCache(known.item_vectors, known.index, n_neighbours + 1)
        return SimilarSource(nearest, searchable, max_length=2, power=0.7)

    @settings(max_examples=30, deadline=None)
    @given(LISTS)
    def test_equals_a_loop_over_the_newest_items(self, lists):
        source, vectors = self.source(), make_retriever().sources["vector"][0].item_vectors
        opened = source.open(Block(histories_of(lists), NOTHING, False), N_ITEMS)
        cosines = vectors @ vectors.T
        for user, rows in enumerate(lists):
            expected = np.zeros(N_ITEMS)
            for place, row in enumerate(rows[::-1][:2]):
                others = [item for item in np.argsort(-cosines[row]) if SEARCHABLE[item]][:5]
                for item in others if SEARCHABLE[row] else []:
                    if item != row and cosines[row, item] > 0:
                        expected[item] += (1 + place) ** -0.7 * cosines[row, item]
            np.testing.assert_allclose(opened.score(np.full(N_ITEMS, user), np.arange(N_ITEMS)), expected, rtol=1e-5)
            assert set(top(opened, user)) == set(np.flatnonzero(expected))

    def test_proposes_nothing_where_no_item_has_text(self):
        source = self.source(searchable=NOTHING)
        assert top(source.open(Block(histories_of([[1]]), NOTHING, False), 5)) == []


class TestPopularity:
    def test_lists_items_that_nobody_took_last(self):
        source = PopularitySource.of(np.array([0, 3, 1, 3], dtype=np.float32))
        opened = source.open(Block(histories_of([[]]), np.zeros(4, dtype=np.bool_), True), 9)
        assert top(opened) == [1, 3, 2, 0]
        assert opened.score(np.array([0, 0]), np.array([0, 1])).tolist() == [0.0, 3.0]

    @given(LISTS, MASKS, st.booleans(), st.integers(1, 9))
    def test_lists_the_first_that_may_be_shown(self, lists, blocked, hide_seen, n):
        order = np.random.default_rng(0).permutation(N_ITEMS)
        users, items = first_shown(order, Block(histories_of(lists), blocked, hide_seen), n)
        for user, rows in enumerate(lists):
            hidden = set(np.flatnonzero(blocked)) | (set(rows) if hide_seen else set())
            assert items[users == user].tolist() == [row for row in order if row not in hidden][:n]


class TestNewItems:
    NEW = (1, 2, 6, 8, 13, 14, 21, 22, 27)

    @settings(max_examples=30, deadline=None)
    @given(LISTS, MASKS, st.booleans())
    def test_is_the_blend_of_what_the_finding_sources_say_about_new_items_alone(self, lists, blocked, hide_seen):
        retriever = make_retriever(new=self.NEW)
        source, n = retriever.sources["new"]
        opened = source.open(Block(histories_of(lists), blocked, hide_seen), n)
        others = np.ones(N_ITEMS, dtype=np.bool_)
        others[list(self.NEW)] = False
        alone = Block(histories_of(lists), blocked | others, hide_seen)
        worth = np.zeros((len(lists), N_ITEMS))
        for name in module.FINDING_NEW:
            found = retriever.sources[name][0].open(alone, n)
            for user in range(len(lists)):
                for rank, item in enumerate(top(found, user), start=1):
                    worth[user, item] += 1 / (20 + rank)
        for user in range(len(lists)):
            expected = sorted(np.flatnonzero(worth[user]), key=lambda item, own=worth[user]: (-own[item], item))[:n]
            got = top(opened, user)
            np.testing.assert_allclose(worth[user, got], worth[user, expected], rtol=1e-5)
            assert set(got) <= set(self.NEW)
            scores = opened.score(np.full(N_ITEMS, user), np.arange(N_ITEMS))
            np.testing.assert_allclose(scores, worth[user], rtol=1e-5)

    def test_is_there_only_where_it_is_asked_for_and_asks_no_source_that_is_off(self):
        assert "new" not in make_retriever().sources
        assert list(make_retriever(new=self.NEW).sources) == list(SOURCES)
        assert "new" not in make_retriever(RetrieverConfig(**{**DEPTHS, "new": 0}), new=self.NEW).sources
        off = dict.fromkeys(module.FINDING_NEW, 0)
        assert "new" not in make_retriever(RetrieverConfig(**{**DEPTHS, **off}), new=self.NEW).sources
        fewer = make_retriever(RetrieverConfig(**{**DEPTHS, **off, "lexical": 4}), new=self.NEW)
        assert len(fewer.sources["new"][0].sources) == 1

    def test_neighbours_among_new_items_are_remembered_beside_those_among_all(self, monkeypatch):
        retriever = make_retriever.__wrapped__(new=self.NEW)
        asked = []
        search = ExactIndex.search

        def counted(index, queries, k, *, allowed=None):
            asked.append(len(queries))
            return search(index, queries, k, allowed=allowed)

        monkeypatch.setattr(ExactIndex, "search", counted)
        block = Block(histories_of(ASKED), NOTHING, False)
        of_new = NewSource((retriever.sources["new"][0].sources[-1],), retriever.sources["new"][0].items)
        for _ in range(2):
            retriever.sources["similar"][0].open(block, 3)
            of_new.open(block, 3)
        assert len(asked) == 2  # one search each, and none the second time

    def test_users_are_encoded_once_for_all_items_and_for_new_ones(self, monkeypatch):
        encoded = []
        encode = HistoryEncoder.encode
        monkeypatch.setattr(HistoryEncoder, "encode", lambda *given: encoded.append(1) or encode(*given))
        for _ in range(2):
            retrieve(ASKED, retriever=make_retriever(new=self.NEW))
        assert len(encoded) == 2  # one block of users each

    def test_without_new_items_it_proposes_nothing(self):
        found = retrieve(ASKED, retriever=make_retriever(new=()))
        assert np.isnan(found.ranks[:, SOURCES.index("new")]).all()
        assert per_user(found, len(ASKED)) == per_user(retrieve(ASKED), len(ASKED))


class TestBlock:
    @given(LISTS, MASKS, st.booleans())
    def test_shows_what_is_neither_blocked_nor_seen(self, lists, blocked, hide_seen):
        block = Block(histories_of(lists), blocked, hide_seen)
        for user, rows in enumerate(lists):
            shown = block.shown(np.full(N_ITEMS, user), np.arange(N_ITEMS))
            hidden = np.isin(np.arange(N_ITEMS), rows) & hide_seen
            assert shown.tolist() == (~blocked & ~hidden).tolist()
            assert block.n_seen()[user] == hidden.sum()


class TestConfig:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"vector": -1},
            dict.fromkeys(SOURCES, 0),
            dict.fromkeys(SOURCES, 0) | {"repeat": 9, "new": 9},
            dict.fromkeys(SOURCES, 0) | {"lookalike": 9},
        ],
    )
    def test_refuses_depths_without_a_source(self, wrong):
        with pytest.raises(ValueError, match="depths must be 0 or more, and one besides repeat, new and lookalike"):
            RetrieverConfig(**wrong)

    def test_refuses_lists_longer_than_can_be_ranked(self):
        with pytest.raises(ValueError, match="n_candidates=10001 must be at most 10000"):
            RetrieverConfig(n_candidates=10_001)

    @pytest.mark.parametrize(
        "name", ["n_candidates", "history_length", "neighbour_length", "lexical_length", "similar_length"]
    )
    def test_refuses_empty_lists(self, name):
        with pytest.raises(ValueError, match="n_candidates and lengths must be at least 1"):
            RetrieverConfig(**{name: 0})

    @pytest.mark.parametrize("wrong", [{"recent_share": 0.0}, {"recent_share": 1.5}, {"trending_share": -0.1}])
    def test_refuses_shares_outside_their_range(self, wrong):
        with pytest.raises(ValueError, match=r"recent_share and trending_share must lie in \(0, 1\]"):
            RetrieverConfig(**wrong)

    @pytest.mark.parametrize("name", ["history_power", "lasting_power", "lookalike_of_new"])
    def test_refuses_what_is_below_zero(self, name):
        with pytest.raises(ValueError, match="history_power, lasting_power and lookalike_of_new must be 0 or more"):
            RetrieverConfig(**{name: -1.0})

    def test_a_depth_of_zero_switches_a_source_off(self):
        off = {**DEPTHS, "vector": 0, "recent": 0}
        left = [name for name in NAMES if name not in ("vector", "recent")]
        assert list(make_retriever(RetrieverConfig(**off)).sources) == left

    def test_a_retriever_without_sources_is_refused(self):
        with pytest.raises(ValueError, match="no source is left to propose items"):
            Retriever({}, n_candidates=5)
