"""What is remembered of nearest items is what a search would find."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from indexing import neighbour_cache as module
from indexing.exact import ExactIndex
from indexing.neighbour_cache import NeighbourCache

N_ITEMS, DEPTH = 40, 6


class CountingIndex(ExactIndex):
    """Counts the queries."""

    n_queries = 0

    def search(self, queries, k, *, allowed=None):
        self.n_queries += len(queries)
        return super().search(queries, k, allowed=allowed)


@pytest.fixture
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(N_ITEMS, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def index(vectors) -> CountingIndex:
    return CountingIndex(vectors, device="cpu")


def check(cache: NeighbourCache, vectors: np.ndarray, asked: list[int], allowed: np.ndarray | None = None) -> None:
    """Against all cosines, sorted."""
    rows, cosines = cache.search(np.array(asked), allowed)
    shown = np.ones(N_ITEMS, dtype=np.bool_) if allowed is None else allowed
    for place, item in enumerate(asked):
        true = np.where(shown, vectors @ vectors[item], -np.inf)
        expected = np.argsort(-true, kind="stable")[:DEPTH]
        n_found = min(DEPTH, int(shown.sum()))
        assert rows[place].tolist() == [*expected[:n_found], *[-1] * (DEPTH - n_found)]
        np.testing.assert_allclose(cosines[place], true[expected], atol=1e-6)


def test_items_are_searched_once(vectors, index):
    cache = NeighbourCache(vectors, index, DEPTH)
    check(cache, vectors, [3, 1, 7])
    check(cache, vectors, [1, 2, 3])
    check(cache, vectors, [7, 3, 2, 1])
    assert index.n_queries == 4


def test_another_mask_starts_anew(vectors, index):
    cache, odd = NeighbourCache(vectors, index, DEPTH), np.arange(N_ITEMS) % 2 == 1
    few = np.arange(N_ITEMS) < 3
    for allowed in (None, odd, few, odd.copy(), None):
        check(cache, vectors, [5, 6], allowed)
        check(cache, vectors, [6, 5], allowed)
    assert index.n_queries == 2 * 5


def test_a_mask_that_the_caller_changes_is_another(vectors, index):
    cache, allowed = NeighbourCache(vectors, index, DEPTH), np.ones(N_ITEMS, dtype=np.bool_)
    check(cache, vectors, [5], allowed)
    allowed[::2] = False
    check(cache, vectors, [5], allowed)


@pytest.mark.parametrize("most", [1, 3, 7])
def test_the_oldest_give_way(vectors, index, monkeypatch, most):
    monkeypatch.setattr(module, "MOST_CELLS", most * DEPTH)
    cache, rng = NeighbourCache(vectors, index, DEPTH), np.random.default_rng(1)
    for _ in range(60):
        check(cache, vectors, rng.choice(12, size=rng.integers(1, 10), replace=False).tolist())
    before = index.n_queries
    check(cache, vectors, [0])
    check(cache, vectors, [0])
    assert index.n_queries - before <= 1


def test_a_cosine_does_not_depend_on_what_is_asked_beside(vectors, index):
    alone, together = (NeighbourCache(vectors, index, DEPTH) for _ in range(2))
    _, many = together.search(np.arange(N_ITEMS), None)
    for item in range(N_ITEMS):
        np.testing.assert_array_equal(alone.search(np.array([item]), None)[1][0], many[item])


def test_threads_with_different_masks_do_not_mix(vectors, index, monkeypatch):
    monkeypatch.setattr(module, "MOST_CELLS", 5 * DEPTH)
    cache, masks = NeighbourCache(vectors, index, DEPTH), [None, np.arange(N_ITEMS) % 2 == 0, np.arange(N_ITEMS) < 20]

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(100):
            check(cache, vectors, rng.choice(9, size=3, replace=False).tolist(), masks[rng.integers(len(masks))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
