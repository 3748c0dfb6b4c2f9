"""Beyond accuracy, by hand and by brute force."""

import math

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from recsys.bench import beyond
from recsys.errors import InvalidData

TRAIN = pl.DataFrame(
    [("u", "a"), ("u", "a"), ("u", "b"), ("v", "a"), ("w", "a"), ("w", "c")],
    schema=["user_id", "item_id"],
    orient="row",
)
LISTS = pl.DataFrame(
    [("u", "a", 1), ("u", "d", 2), ("u", "b", 3), ("v", "c", 1), ("v", "c", 2)],
    schema=["user_id", "item_id", "rank"],
    orient="row",
)
USERS = pl.Series("user_id", ["u", "v", "x"])


def test_novelty_by_hand():
    found = beyond.novelty(LISTS, TRAIN, USERS, 2)
    assert found[:2] == pytest.approx([(-math.log2(4 / 4) - math.log2(1 / 4)) / 2, -math.log2(2 / 4)])
    assert np.isnan(found[2])


def test_popularity_lift_by_hand():
    found = beyond.popularity_lift(LISTS, TRAIN, USERS, 2)
    assert found[:2] == pytest.approx([((3 + 0) / 2) / ((3 + 1) / 2) - 1, 1 / 3 - 1])
    assert np.isnan(found[2])


def test_serendipity_counts_hits_that_are_not_popular():
    truth = pl.DataFrame({"user_id": ["u", "u", "v", "x"], "item_id": ["a", "d", "c", "a"]})
    # The two most popular are a and b: only d of u and c of v surprise.
    assert beyond.serendipity(LISTS, truth, TRAIN, USERS, 2).tolist() == [0.5, 0.5, 0.0]


def test_diversity_equals_all_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0
    ids = pl.Series("item_id", [f"i{n:02}" for n in range(20)])
    rows = [
        (f"u{user}", ids[int(item)], place) for user in range(9) for place, item in enumerate(rng.permutation(20)[:6])
    ]
    lists = pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")
    users = lists["user_id"].unique().sort()
    found = beyond.intra_list_diversity(lists, ids, vectors, users, 5)
    for user, value in zip(users, found, strict=True):
        chosen = vectors[[int(item[1:]) for item in lists.filter(user_id=user).sort("rank")["item_id"][:5]]]
        pairs = [1 - chosen[a] @ chosen[b] for a in range(5) for b in range(5) if a != b]
        assert value == pytest.approx(np.mean(pairs))
    assert np.isnan(beyond.intra_list_diversity(lists, ids, vectors, users, 1)).all()


def test_gini():
    def shown(*counts):
        rows = [(f"u{n}{item}", f"i{item}", 1) for item, count in enumerate(counts) for n in range(count)]
        return pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")

    assert beyond.gini(shown(2, 2, 2), 3, 10) == pytest.approx(0)
    assert beyond.gini(shown(6), 3, 10) == pytest.approx(1 - 1 / 3)
    counts = np.array([0, 0, 1, 3, 5])
    expected = np.abs(counts[:, None] - counts).sum() / (2 * 25 * counts.mean())
    assert beyond.gini(shown(3, 5, 1), 5, 10) == pytest.approx(expected)
    assert np.isnan(beyond.gini(shown(1).clear(), 5, 10))


def test_calibration_equals_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.random(2000)
    labels = (rng.random(2000) < probabilities).astype(np.float64)
    found = beyond.calibration(probabilities, labels)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probabilities))
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities))
    assert found["ece"] < 0.05
    assert beyond.calibration(probabilities, 1 - labels)["ece"] > 0.3
    assert beyond.calibration(np.array([0.0, 1.0]), np.array([1.0, 1.0]))["log_loss"] < 20
    for wrong in (np.array([]), np.array([0.5, 1.5])):
        with pytest.raises(InvalidData, match=r"scores: must be probabilities in \[0, 1\]"):
            beyond.calibration(wrong, np.zeros(len(wrong)))
