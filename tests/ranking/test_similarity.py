"""Similarity of candidates to histories, against loops over single pairs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from polars.testing import assert_frame_equal

from ranking.similarity import NeighbourSpace, VectorSpace, add_similarity

N_USERS, N_ITEMS, DIM, NEWEST = 5, 30, 400, 4
INT = {"user_row": pl.Int32, "item_row": pl.Int32}
rng = np.random.default_rng(0)


def unit(n: int) -> np.ndarray:
    vectors = rng.normal(size=(n, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ROWS = np.where(np.arange(N_ITEMS) % 7 == 3, -1, np.arange(N_ITEMS) // 2)  # two items share a vector, some have none
VECTORS = VectorSpace(unit(N_ITEMS // 2), ROWS)
MATRIX = sp.random_array((N_ITEMS, N_ITEMS), density=0.3, format="csr", dtype=np.float32, rng=rng)
SPACES = {"vector": VECTORS, "together": NeighbourSpace(sp.csr_matrix(MATRIX))}


def histories() -> pl.DataFrame:
    """By user and time; the last user has none, and the one before nothing but items without a vector."""
    events = [(user, int(item)) for user in range(3) for item in rng.integers(0, N_ITEMS, 3 * user + 2)]
    events += [(3, 3), (3, 10)]
    return pl.DataFrame(events, schema=INT, orient="row").with_columns(seconds=pl.int_range(pl.len()) * 1.0)


def all_pairs() -> pl.DataFrame:
    pairs = pl.DataFrame([(u, i) for u in range(N_USERS) for i in range(N_ITEMS)], schema=INT, orient="row")
    return pairs.sample(fraction=1.0, shuffle=True, seed=0).with_columns(score=pl.int_range(pl.len()))


def compared(pairs: pl.DataFrame, history: pl.DataFrame, spaces: dict, *, newest: int) -> pl.DataFrame:
    """`add_similarity` with frames on both sides."""
    columns = {name: values.to_numpy() for name, values in pairs.to_dict().items()}
    return pl.DataFrame(add_similarity(columns, history, spaces, newest=newest), nan_to_null=True)


HISTORY = histories()
FOUND = compared(all_pairs(), HISTORY, SPACES, newest=NEWEST)


def loop(name: str, user: int, item: int) -> list[float | None]:
    taken = HISTORY.filter(user_row=user)["item_row"].to_list()
    if name == "vector":
        taken = [other for other in taken if ROWS[other] >= 0]
        if ROWS[item] < 0:
            taken = []
        values = [float(VECTORS.vectors[ROWS[item]] @ VECTORS.vectors[ROWS[other]]) for other in taken[-NEWEST:]]
    else:
        dense = MATRIX.toarray()
        values = [float(dense[other, item]) for other in taken[-NEWEST:]]
    return [max(values), sum(values) / len(values), values[-1]] if values else [None] * 3


@pytest.mark.parametrize("name", list(SPACES))
def test_equals_a_loop_over_the_newest_events(name):
    for row in FOUND.iter_rows(named=True):
        expected = loop(name, row["user_row"], row["item_row"])
        found = [row[f"similarity_{name}_{detail}"] for detail in ("max", "mean", "last")]
        for one, other in zip(found, expected, strict=True):
            assert one == (None if other is None else pytest.approx(other, abs=1e-5))


def test_keeps_the_pairs_and_adds_floats():
    pairs = all_pairs()
    assert_frame_equal(FOUND.select(pairs.columns), pairs)
    assert {FOUND.schema[name] for name in FOUND.columns if name.startswith("similarity_")} == {pl.Float32}


def test_of_a_user_does_not_depend_on_the_other_users():
    for user in range(N_USERS):
        alone = compared(all_pairs().filter(user_row=user), HISTORY.filter(user_row=user), SPACES, newest=NEWEST)
        assert_frame_equal(alone, FOUND.filter(user_row=user))


def test_a_pair_that_is_there_twice_gets_the_same_twice():
    twice = pl.concat([all_pairs(), all_pairs()])
    found = compared(twice, HISTORY, SPACES, newest=NEWEST)
    assert_frame_equal(found.head(len(FOUND)), FOUND)
    assert_frame_equal(found.tail(len(FOUND)), FOUND)


def test_many_candidates_are_compared_as_few_are():
    items = np.arange(3000) % N_ITEMS
    recent = np.array([0, 1, 2, 4])
    few = VECTORS.compare(np.arange(N_ITEMS), recent)
    np.testing.assert_allclose(VECTORS.compare(items, recent), few[:, items], atol=1e-6)


def test_of_no_pairs_has_the_same_columns():
    assert compared(all_pairs().clear(), HISTORY, SPACES, newest=NEWEST).schema == FOUND.schema


def test_without_spaces_there_is_nothing_to_add():
    assert_frame_equal(compared(all_pairs(), HISTORY, {}, newest=NEWEST), all_pairs())
