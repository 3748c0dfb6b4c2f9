"""Metrics equal a brute-force definition and ir_measures; intervals behave as intervals."""

import math

import ir_measures
import numpy as np
import polars as pl
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG

from recsys import metrics
from recsys.errors import InvalidConfig, InvalidData

PER_USER = {
    "ndcg": (metrics.ndcg, nDCG),
    "recall": (metrics.recall, R),
    "precision": (metrics.precision, P),
    "hitrate": (metrics.hitrate, Success),
    "mrr": (metrics.mrr, RR),
    "average_precision": (metrics.average_precision, AP),
}


def random_case(seed: int, *, n_users: int = 30, n_items: int = 12) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lists with tied ranks, repeated items, gaps, users without a list and users without truth."""
    rng = np.random.default_rng(seed)
    lists = [
        {"user_id": f"u{user:02}", "item_id": f"i{rng.integers(n_items):02}", "rank": int(rng.integers(1, 9))}
        for user in range(n_users)
        for _ in range(rng.integers(0, 15))
        if user % 7
    ]
    truth = [
        {"user_id": f"u{user:02}", "item_id": f"i{rng.integers(n_items + 3):02}"}
        for user in range(n_users)
        for _ in range(rng.integers(1, 10))
        if user % 5
    ]
    return pl.DataFrame(lists), pl.DataFrame(truth)


def reference_lists(recommended: pl.DataFrame) -> dict[str, list[str]]:
    """Each user's distinct items in the order of rank and item, without any vectorised operation."""
    lists: dict[str, list[str]] = {}
    for user, _, item in sorted(recommended.select("user_id", "rank", "item_id").iter_rows()):
        if item not in lists.setdefault(user, []):
            lists[user].append(item)
    return lists


def reference_value(name: str, items: list[str], relevant: set[str], k: int) -> float:
    ranks = [rank for rank, item in enumerate(items[:k], start=1) if item in relevant]
    match name:
        case "ndcg":
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
            return sum(1 / math.log2(rank + 1) for rank in ranks) / ideal
        case "recall":
            return len(ranks) / len(relevant)
        case "precision":
            return len(ranks) / k
        case "hitrate":
            return float(bool(ranks))
        case "mrr":
            return 1 / ranks[0] if ranks else 0.0
    return sum(n / rank for n, rank in enumerate(ranks, start=1)) / len(relevant)


@pytest.mark.parametrize("name", PER_USER)
@pytest.mark.parametrize("seed", range(4))
def test_per_user_metrics_equal_the_brute_force_definition(name, seed):
    recommended, truth = random_case(seed)
    lists = reference_lists(recommended)
    hits = metrics.hit_matrix(recommended, truth, 10)
    assert hits.users.to_list() == sorted(set(truth["user_id"]))
    for k in (1, 3, 10):
        expected = [
            reference_value(name, lists.get(user, []), set(truth.filter(user_id=user)["item_id"]), k)
            for user in hits.users
        ]
        np.testing.assert_allclose(PER_USER[name][0](hits, k), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PER_USER)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_per_user_metrics_equal_ir_measures(name, k):
    recommended, truth = random_case(seed=11)
    ours, theirs = PER_USER[name]
    hits = metrics.hit_matrix(recommended, truth, 10)
    run = {
        user: {item: -float(place) for place, item in enumerate(items)}
        for user, items in reference_lists(recommended).items()
    }
    qrels = {user: dict.fromkeys(truth.filter(user_id=user)["item_id"], 1) for user in hits.users}
    expected = {m.query_id: m.value for m in ir_measures.iter_calc([theirs @ k], qrels, run)}
    np.testing.assert_allclose(ours(hits, k), [expected[user] for user in hits.users], rtol=0, atol=1e-9)


def test_hit_matrix_of_a_known_case():
    recommended = pl.DataFrame(
        {
            "user_id": [2, 2, 2, 2, 1, 9],
            "item_id": ["b", "a", "b", "c", "z", "a"],
            "rank": [1, 2, 3, 4, 1, 1],
        }
    )
    truth = pl.DataFrame({"user_id": [2, 2, 2, 1, 3], "item_id": ["c", "b", "b", "a", "a"]})
    hits = metrics.hit_matrix(recommended, truth, 3)
    assert hits.users.to_list() == [1, 2, 3]
    assert hits.hits.tolist() == [[False] * 3, [True, False, True], [False] * 3]
    assert hits.n_relevant.tolist() == [1, 2, 1]


def test_row_order_changes_nothing():
    recommended, truth = random_case(seed=5)
    hits = metrics.hit_matrix(recommended, truth, 10)
    shuffled = metrics.hit_matrix(
        recommended.sample(fraction=1, shuffle=True, seed=1),
        truth.sample(fraction=1, shuffle=True, seed=2),
        10,
    )
    np.testing.assert_array_equal(hits.hits, shuffled.hits)


def test_empty_recommendations_score_zero_for_every_user_of_the_truth():
    recommended, truth = random_case(seed=3)
    hits = metrics.hit_matrix(recommended.clear(), truth, 4)
    assert len(hits.users) == truth["user_id"].n_unique()
    assert all((metric(hits, 4) == 0).all() for metric, _ in PER_USER.values())


def test_empty_truth_has_no_users():
    recommended, truth = random_case(seed=3)
    hits = metrics.hit_matrix(recommended, truth.clear(), 4)
    assert hits.hits.shape == (0, 4)
    assert metrics.ndcg(hits, 4).shape == (0,)


def test_coverage_counts_the_distinct_items_of_the_first_k():
    recommended = pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": [7, 7, 8, 7, 9], "rank": [1, 2, 3, 1, 2]})
    assert metrics.coverage(recommended, 10, 1) == 0.1
    assert metrics.coverage(recommended, 10, 2) == pytest.approx(0.3)
    assert metrics.coverage(recommended.clear(), 10, 2) == 0


def test_bootstrap_interval_holds_the_mean_and_follows_the_normal_theory():
    values = np.random.default_rng(0).normal(3, 2, size=4000)
    low, high = metrics.bootstrap_interval(values, seed=1)
    half_width = 1.96 * values.std() / math.sqrt(values.size)
    assert low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)
    assert metrics.bootstrap_interval(values, seed=1) == (low, high)
    narrow = metrics.bootstrap_interval(values, level=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_in_blocks_equals_one_draw(monkeypatch):
    values = np.random.default_rng(0).random(50)
    whole = metrics.bootstrap_interval(values, n_samples=101, seed=4)
    monkeypatch.setattr(metrics, "_BLOCK", 350)
    assert metrics.bootstrap_interval(values, n_samples=101, seed=4) == whole


def test_bootstrap_of_a_constant_is_a_point():
    assert metrics.bootstrap_interval(np.full(5, 0.25), seed=0) == (0.25, 0.25)


def test_paired_bootstrap_sees_a_small_steady_difference():
    rng = np.random.default_rng(0)
    easy = rng.random(500)
    a, b = easy + 0.01 + rng.normal(0, 0.01, 500), easy
    difference, low, high = metrics.paired_bootstrap(a, b, seed=0)
    assert difference == pytest.approx((a - b).mean())
    assert 0 < low < difference < high
    assert metrics.paired_bootstrap(a, a, seed=0) == (0, 0, 0)


def test_k_out_of_range_is_refused():
    recommended, truth = random_case(seed=0)
    with pytest.raises(InvalidConfig, match="k is 0; it must be at least 1"):
        metrics.hit_matrix(recommended, truth, 0)
    with pytest.raises(InvalidConfig, match="k is -1; it must be at least 1"):
        metrics.coverage(recommended, 99, -1)
    hits = metrics.hit_matrix(recommended, truth, 5)
    for k in (0, 6):
        with pytest.raises(InvalidConfig, match=f"k is {k}; it must lie between 1 and 5, the k of the hit matrix"):
            metrics.ndcg(hits, k)


def test_a_catalogue_smaller_than_what_was_recommended_is_refused():
    recommended, _ = random_case(seed=0)
    with pytest.raises(InvalidConfig, match="n_items is 2, but 12 distinct items are recommended"):
        metrics.coverage(recommended, 2, 10)
    with pytest.raises(InvalidConfig, match="n_items is 0, but 0 distinct items are recommended"):
        metrics.coverage(recommended.clear(), 0, 10)


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(InvalidData, match=r"values: must not be empty. Pass one value for each user"):
        metrics.bootstrap_interval(np.empty(0), seed=0)
    with pytest.raises(InvalidData, match=r"values: must be finite. 2 of 3 rows"):
        metrics.bootstrap_interval(np.array([1, np.nan, np.inf]), seed=0)
    with pytest.raises(InvalidConfig, match="n_samples is 0; it must be at least 1"):
        metrics.bootstrap_interval(np.ones(3), n_samples=0, seed=0)
    with pytest.raises(InvalidConfig, match="level is 1; it must lie strictly between 0 and 1"):
        metrics.bootstrap_interval(np.ones(3), level=1, seed=0)
    with pytest.raises(InvalidData, match=r"must have the same users, but have the shapes \(3,\) and \(1,\)"):
        metrics.paired_bootstrap(np.ones(3), np.ones(1), seed=0)
