"""Short vectors: the best of their length, of unit length, and made for the queries that come."""

import numpy as np
import pytest

from indexing.index import FloatArray, IndexConfig, build_index
from indexing.shortening import Shortening
from indexing.tuning import recall_of


def unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


RNG = np.random.default_rng(0)
VECTORS = unit(RNG.normal(size=(3000, 24)) * np.linspace(2.0, 0.2, 24))
# Users look where items differ little: into the last eight directions alone.
USERS = unit(RNG.normal(size=(400, 24)) * (np.arange(24) >= 16))


def error(queries: FloatArray, vectors: FloatArray, of_queries: FloatArray, of_vectors: FloatArray) -> float:
    return float(np.square(queries @ vectors.T - (queries @ of_queries) @ (vectors @ of_vectors).T).mean())


@pytest.mark.parametrize("dim", [2, 9, 20])
def test_the_error_is_the_least_that_is_possible(dim: int) -> None:
    queries = unit(RNG.normal(size=(300, 24)) * np.linspace(0.5, 1.5, 24))
    short = Shortening.learn(queries, VECTORS, dim)
    longest = np.linalg.norm(VECTORS @ short.vectors, axis=1).max()
    assert longest == pytest.approx(1.0, abs=1e-5)
    scale = np.linalg.lstsq(
        ((queries @ short.queries) @ (VECTORS @ short.vectors).T).reshape(-1, 1),
        (queries @ VECTORS.T).ravel(),
        rcond=None,
    )[0][0]
    _, strengths, _ = np.linalg.svd(queries @ VECTORS.T)
    best = np.square(strengths[dim - 1 :]).sum() / (len(queries) * len(VECTORS))
    assert error(queries, VECTORS, short.queries * scale, short.vectors) == pytest.approx(best, rel=0.02)


def test_short_vectors_keep_the_order_and_have_unit_length() -> None:
    short = Shortening.learn(USERS, VECTORS, 7)
    queries, vectors = short.of_queries(USERS), short.of_vectors(VECTORS)
    assert (queries.dtype, queries.shape, vectors.dtype, vectors.shape) == (np.float32, (400, 7), np.float32, (3000, 7))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(queries @ vectors.T, (USERS @ short.queries) @ (VECTORS @ short.vectors).T, atol=1e-6)


def test_a_vector_longer_than_those_learnt_from_becomes_a_unit_vector_too() -> None:
    short = Shortening.learn(USERS, VECTORS, 7)
    outside = np.linalg.svd(short.vectors)[0][:, :1].T.astype(np.float32)
    assert np.linalg.norm(outside @ short.vectors) > 1.0
    np.testing.assert_allclose(np.linalg.norm(short.of_vectors(outside), axis=1), 1.0, atol=1e-6)


def test_a_query_of_which_nothing_is_left_still_points_somewhere() -> None:
    short = Shortening(np.zeros((4, 2), dtype=np.float32), np.eye(4, 2, dtype=np.float32))
    assert short.of_queries(np.eye(4, dtype=np.float32)).tolist() == [[0.0, 0.0, 1.0]] * 4


def test_directions_in_which_nothing_varies_do_no_harm() -> None:
    flat = np.zeros((50, 24), dtype=np.float32)
    flat[:, 3] = 1.0
    short = Shortening.learn(flat, flat, 5)
    assert np.isfinite(short.queries).all()
    assert np.isfinite(short.of_vectors(flat)).all()


def test_an_index_for_the_queries_that_come_finds_more_than_one_for_any() -> None:
    config = IndexConfig(kind="flat", search_dim=9)
    truth = np.argsort(-(USERS @ VECTORS.T), axis=1)[:, :20]
    found = {}
    for name, queries in (("any", None), ("theirs", lambda: USERS)):
        index = build_index(VECTORS, config, device="cpu", queries=queries)
        index.overfetch = 1
        found[name] = recall_of(index.search(USERS, 20)[0], truth).mean()
    assert found["theirs"] > 0.95
    assert found["any"] < 0.8
