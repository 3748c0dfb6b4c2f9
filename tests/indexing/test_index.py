"""One contract for every index kind, checked against a sorted matrix product; the choice between kinds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from indexing import exact
from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex
from indexing.faiss_master import faiss_build
from indexing.index import (
    FloatArray,
    Hits,
    Mask,
    RowArray,
    VectorIndex,
    index_summary,
    load_index,
)
from indexing.rescored import RescoredIndex
from indexing.shortening import Shortening

Build = Callable[[FloatArray], VectorIndex]
Expected = tuple[RowArray, NDArray[np.float64]]

gpu = pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
faiss_gpu = *gpu, pytest.mark.skipif(faiss_build() != "gpu", reason="no GPU build of FAISS")


def all_lists(vectors: FloatArray, device: str, codes: str = "flat") -> FaissIndex:
    n_lists = max(1, len(vectors) // 40)
    return FaissIndex.ivf(vectors, n_lists=n_lists, n_probe=n_lists, device=device, codes=codes)


def all_rescored(vectors: FloatArray, kind: str, device: str) -> RescoredIndex:
    """Finds every row at first and so leaves the whole order to the full vectors, here of its own."""
    vectors = np.array(vectors, order="C")
    if kind == "sq8":
        return RescoredIndex(all_lists(vectors, device, "sq8"), vectors, overfetch=1000)
    shortening = Shortening.learn(vectors, vectors, 3)
    coarse = ExactIndex(shortening.of_vectors(vectors), device=device)
    return RescoredIndex(coarse, vectors, shortening=shortening, overfetch=1000)


@pytest.fixture(
    params=[
        "exact",
        "flat",
        "ivf",
        "hnsw",
        "sq8",
        "short",
        pytest.param("exact-gpu", marks=gpu),
        pytest.param("short-gpu", marks=gpu),
        pytest.param("flat-gpu", marks=faiss_gpu),
        pytest.param("ivf-gpu", marks=faiss_gpu),
        pytest.param("sq8-gpu", marks=faiss_gpu),
    ]
)
def build(request: pytest.FixtureRequest) -> Build:
    kind, _, place = request.param.partition("-")
    device = "cuda" if place else "cpu"
    if kind == "exact":
        return lambda vectors: ExactIndex(vectors, device=device)
    if kind == "flat":
        return lambda vectors: FaissIndex.flat(vectors, device=device)
    if kind == "hnsw":
        return lambda vectors: FaissIndex.hnsw(vectors, ef_search=64, device=device)
    if kind in ("sq8", "short"):
        return lambda vectors: all_rescored(vectors, kind, device)
    return lambda vectors: all_lists(vectors, device)


def unit_vectors(n: int, dim: int = 16, seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def grid_vectors(n: int, seed: int = 0) -> FloatArray:
    """Four entries of +-0.5 each: inner products are multiples of 0.25, exact in any order of summation."""
    rng = np.random.default_rng(seed)
    vectors = np.zeros((n, 8), dtype=np.float32)
    for vector in vectors:
        vector[rng.choice(8, size=4, replace=False)] = rng.choice([-0.5, 0.5], size=4)
    return vectors


def brute_force(vectors: FloatArray, queries: FloatArray, k: int, allowed: Mask | None = None) -> Expected:
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    rows: RowArray = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, axis=1)
    rows[np.isneginf(best)] = -1
    return rows, best


def assert_same(found: Hits, expected: Expected) -> None:
    rows, scores = found
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected[1], atol=1e-5, rtol=0)
    differ = rows != expected[0]
    assert not (differ & ~last_bits(expected[1])).any()


def last_bits(scores: NDArray[np.float64]) -> Mask:
    """Where a neighbour's score differs, but by less than the order of summation can change it."""
    with np.errstate(invalid="ignore"):
        gaps = np.diff(scores, axis=1, prepend=np.inf, append=-np.inf)
    near: Mask = (gaps < 0) & (gaps > -1e-6)
    return near[:, 1:] | near[:, :-1]


class TestContract:
    """What holds for every kind, on every device."""

    @pytest.mark.parametrize("n_queries", [1, 3, 200])
    @pytest.mark.parametrize("k", [1, 10, 799, 800])
    def test_equals_brute_force(self, build: Build, n_queries: int, k: int) -> None:
        vectors, queries = unit_vectors(800), unit_vectors(n_queries, seed=1)
        assert_same(build(vectors).search(queries, k), brute_force(vectors, queries, k))

    def test_k_above_size_returns_every_row_once(self, build: Build) -> None:
        vectors, queries = unit_vectors(90), unit_vectors(5, seed=1)
        rows, scores = build(vectors).search(queries, 10**9)
        assert rows.shape == scores.shape == (5, 90)
        assert_same((rows, scores), brute_force(vectors, queries, 90))

    def test_single_vector(self, build: Build) -> None:
        vectors = unit_vectors(1)
        assert_same(build(vectors).search(vectors, 3), (np.array([[0]]), np.array([[1.0]])))

    def test_queries_need_not_be_unit(self, build: Build) -> None:
        vectors, queries = unit_vectors(100), 7 * unit_vectors(4, seed=1)
        assert_same(build(vectors).search(queries, 5), brute_force(vectors, queries, 5))

    def test_no_queries(self, build: Build) -> None:
        rows, scores = build(unit_vectors(100)).search(np.empty((0, 16), np.float32), 5)
        assert rows.shape == scores.shape == (0, 5)

    @pytest.mark.parametrize("k", [1, 2, 5, 50, 299])
    @pytest.mark.parametrize("n_queries", [2, 60])
    def test_equal_scores_come_by_row_also_across_the_boundary(self, build: Build, k: int, n_queries: int) -> None:
        vectors, queries = grid_vectors(300), grid_vectors(n_queries, seed=1)
        assert_same(build(vectors).search(queries, k), brute_force(vectors, queries, k))

    @pytest.mark.parametrize("k", [1, 7, 120])
    def test_all_vectors_equal(self, build: Build, k: int) -> None:
        vectors = np.repeat(grid_vectors(1), 120, axis=0)
        rows, _ = build(vectors).search(vectors[:3], k)
        np.testing.assert_array_equal(rows, np.tile(np.arange(k), (3, 1)))

    def test_equal_scores_with_a_mask(self, build: Build) -> None:
        vectors, queries = grid_vectors(300), grid_vectors(20, seed=1)
        allowed = np.random.default_rng(2).random(300) < 0.4
        found = build(vectors).search(queries, 15, allowed=allowed)
        assert_same(found, brute_force(vectors, queries, 15, allowed))

    @pytest.mark.parametrize("n_allowed", [300, 299, 150, 12, 3, 1, 0])
    def test_mask(self, build: Build, n_allowed: int) -> None:
        vectors, queries = unit_vectors(300), unit_vectors(9, seed=1)
        allowed = np.zeros(300, dtype=bool)
        allowed[np.random.default_rng(3).permutation(300)[:n_allowed]] = True
        rows, scores = build(vectors).search(queries, 12, allowed=allowed)
        assert_same((rows, scores), brute_force(vectors, queries, 12, allowed))
        assert ((rows >= 0).sum(axis=1) == min(12, n_allowed)).all()
        assert np.isneginf(scores[rows < 0]).all()

    def test_mask_at_every_bit_position(self, build: Build) -> None:
        vectors = unit_vectors(67)
        index = build(vectors)
        for row in range(67):
            rows, _ = index.search(vectors[:1], 2, allowed=np.arange(67) == row)
            assert rows.tolist() == [[row, -1]]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 3e38])
    def test_query_without_direction_finds_nothing_and_leaves_the_others_alone(
        self, build: Build, value: float
    ) -> None:
        vectors, queries = unit_vectors(100), unit_vectors(3, seed=1)
        expected_rows, expected_scores = brute_force(vectors, queries, 4)
        queries[1] = value
        expected_rows[1], expected_scores[1] = -1, -np.inf
        assert_same(build(vectors).search(queries, 4), (expected_rows, expected_scores))

    def test_queries_in_any_memory_layout(self, build: Build) -> None:
        vectors, queries = unit_vectors(100), unit_vectors(16, seed=1)
        found = build(np.asfortranarray(vectors)).search(np.asfortranarray(queries)[::2], 4)
        assert_same(found, brute_force(vectors, queries[::2], 4))

    def test_owns_its_vectors(self, build: Build) -> None:
        vectors, queries = unit_vectors(100), unit_vectors(3, seed=1)
        given = vectors.copy()
        index = build(given)
        given[:] = 0
        assert_same(index.search(queries, 4), brute_force(vectors, queries, 4))

    def test_save_and_load_give_the_same_answers(self, build: Build, tmp_path: Path) -> None:
        vectors, queries = unit_vectors(200), unit_vectors(5, seed=1)
        index = build(vectors)
        index.save(tmp_path / "new" / "index")
        loaded = load_index(tmp_path / "new" / "index", device=index.device)
        assert index_summary(loaded) == index_summary(index)
        for expected, found in zip(index.search(queries, 20), loaded.search(queries, 20), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_saved_twice_is_the_same_bytes(self, build: Build, tmp_path: Path) -> None:
        index = build(unit_vectors(200))
        index.save(tmp_path / "a")
        load_index(tmp_path / "a", device="cpu").save(tmp_path / "b")
        for path in filter(Path.is_file, (tmp_path / "a").rglob("*")):
            assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()

    def test_saved_where_it_was_loaded_from(self, build: Build, tmp_path: Path) -> None:
        vectors = unit_vectors(200)
        build(vectors).save(tmp_path)
        loaded = load_index(tmp_path, device="cpu")
        loaded.add(unit_vectors(5, seed=1))
        loaded.save(tmp_path)
        again = load_index(tmp_path, device="cpu")
        assert again.size == 205
        assert_same(again.search(vectors[:9], 3), loaded.search(vectors[:9], 3))

    @pytest.mark.parametrize("n_added", [0, 1, 70])
    def test_added_rows_are_found_at_once_and_after_save(self, build: Build, n_added: int, tmp_path: Path) -> None:
        vectors, queries = unit_vectors(230 + n_added), unit_vectors(9, seed=1)
        index = build(vectors[:230])
        index.add(vectors[230:])
        assert (index.size, len(index.deleted)) == (230 + n_added, 230 + n_added)
        assert_same(index.search(queries, 40), brute_force(vectors, queries, 40))
        rows, _ = index.search(vectors[230:], 1)
        np.testing.assert_array_equal(rows[:, 0], np.arange(230, 230 + n_added))
        index.save(tmp_path)
        assert_same(load_index(tmp_path, device="cpu").search(queries, 40), brute_force(vectors, queries, 40))

    def test_deleted_rows_never_appear_again(self, build: Build, tmp_path: Path) -> None:
        vectors, queries = unit_vectors(300), unit_vectors(9, seed=1)
        alive = np.random.default_rng(2).random(300) < 0.7
        index = build(vectors)
        index.delete(np.flatnonzero(~alive)[:10])
        index.delete(np.flatnonzero(~alive))
        index.add(vectors[~alive][:4])
        vectors, alive = np.concatenate([vectors, vectors[~alive][:4]]), np.append(alive, [True] * 4)
        for k in (10, 304):
            assert_same(index.search(queries, k), brute_force(vectors, queries, k, alive))
        allowed = np.arange(304) % 2 == 0
        assert_same(index.search(queries, 20, allowed=allowed), brute_force(vectors, queries, 20, allowed & alive))
        index.save(tmp_path)
        loaded = load_index(tmp_path, device="cpu")
        assert f"{(~alive).sum()} deleted" in index_summary(loaded)
        assert_same(loaded.search(queries, 10), brute_force(vectors, queries, 10, alive))

    def test_all_deleted(self, build: Build) -> None:
        index = build(unit_vectors(50))
        index.delete(np.arange(50))
        assert (index.search(unit_vectors(2), 3)[0] == -1).all()

    @pytest.mark.parametrize("rows", [[50], [-1], [0.5], [True]])
    def test_refuses_to_delete(self, build: Build, rows: list[int]) -> None:
        with pytest.raises(ValueError, match=r"rows to delete must be integers in 0\.\.49, got"):
            build(unit_vectors(50)).delete(np.array(rows))

    @pytest.mark.parametrize(
        ("vectors", "message"),
        [
            (np.ones((1, 16), np.float32), r"1 of 1 vectors are not of unit length"),
            (np.eye(15, dtype=np.float32), "vectors have 15 dimensions, the index has 16"),
            (np.eye(16), "vectors must be a float32 matrix, got float64"),
        ],
    )
    def test_refuses_to_add(self, build: Build, vectors: FloatArray, message: str) -> None:
        index = build(unit_vectors(50))
        with pytest.raises(ValueError, match=message):
            index.add(vectors)
        assert index.size == 50

    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            (np.zeros((2, 16)), r"queries must be a float32 matrix, got float64 of shape \(2, 16\)"),
            (np.zeros(16, np.float32), r"queries must be a float32 matrix, got float32 of shape \(16,\)"),
            (np.zeros((2, 15), np.float32), "queries have 15 dimensions, the index has 16"),
        ],
    )
    def test_refuses_queries(self, build: Build, queries: FloatArray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(unit_vectors(50)).search(queries, 3)

    @pytest.mark.parametrize("k", [0, -1])
    def test_refuses_k(self, build: Build, k: int) -> None:
        with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
            build(unit_vectors(50)).search(unit_vectors(1), k)

    @pytest.mark.parametrize("allowed", [np.ones(49, bool), np.ones((50, 1), bool), np.ones(50, np.uint8)])
    def test_refuses_mask(self, build: Build, allowed: Mask) -> None:
        with pytest.raises(ValueError, match=r"allowed must be bool of shape \(50,\), got"):
            build(unit_vectors(50)).search(unit_vectors(1), 3, allowed=allowed)


class TestExact:
    """What only the blocks of the exact index could break."""

    @pytest.mark.parametrize("make", [unit_vectors, grid_vectors])
    @pytest.mark.parametrize("k", [1, 20, 70, 300])
    def test_blocks_change_nothing(
        self, monkeypatch: pytest.MonkeyPatch, make: Callable[..., FloatArray], k: int
    ) -> None:
        monkeypatch.setattr(exact, "QUERY_BLOCK", 7)
        monkeypatch.setattr(exact, "ITEM_BLOCK", 64)
        vectors, queries = make(300), make(30, seed=1)
        allowed = np.arange(300) % 3 > 0
        index = ExactIndex(vectors, device="cpu")
        assert_same(index.search(queries, k), brute_force(vectors, queries, k))
        assert_same(index.search(queries, k, allowed=allowed), brute_force(vectors, queries, k, allowed))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda path: path.unlink(), r"vectors\.npy cannot be read"),
            (lambda path: path.write_bytes(b""), r"vectors\.npy cannot be read"),
            (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"vectors\.npy cannot be read"),
            (lambda path: np.save(path, np.array([{}], dtype=object)), r"vectors\.npy cannot be read"),
            (lambda path: np.save(path, np.zeros((9, 4))), "must be a float32 matrix, got float64"),
            (lambda path: np.save(path, unit_vectors(9, 4)), "holds 9 x 4, its header says 20 x 16"),
        ],
    )
    def test_refuses_spoilt_file(self, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
        ExactIndex(unit_vectors(20), device="cpu").save(tmp_path)
        spoil(tmp_path / "vectors.npy")
        with pytest.raises(ValueError, match=message):
            load_index(tmp_path, device="cpu")
