"""Known small answers for each baseline, the rules that all share, and a dense oracle for ItemKNN."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys import baselines
from recsys.baselines import BuyAgain, ItemKNN, Popular, RecentPopular
from recsys.errors import InvalidConfig, NotFitted

AS_OF = datetime(2024, 6, 1, tzinfo=UTC)
ALL = [Popular, RecentPopular, ItemKNN, BuyAgain]


def interactions_of(*rows: tuple[str, str, float]) -> pl.DataFrame:
    """Interactions from (user, item, age in days at AS_OF)."""
    return pl.DataFrame(
        [(user, item, AS_OF - timedelta(days=age)) for user, item, age in rows],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Datetime("us", "UTC")},
        orient="row",
    )


def items_of(ids: str, unavailable: str = "") -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": list(ids), "available": [item not in unavailable for item in ids]},
        schema={"item_id": pl.String, "available": pl.Boolean},
    )


def users_of(*ids: str) -> pl.Series:
    return pl.Series("user_id", ids, dtype=pl.String)


def lists_of(recommended: pl.DataFrame) -> dict[str, str]:
    """Each user's items as one word, best first."""
    lists: dict[str, str] = {}
    for user, item in recommended.select("user_id", "item_id").iter_rows():
        lists[user] = lists.get(user, "") + item
    return lists


LOG = interactions_of(
    ("u", "a", 50), ("u", "a", 40), ("u", "a", 30), ("u", "b", 5),
    ("v", "c", 60), ("v", "b", 50), ("v", "d", 45),
    ("w", "c", 80), ("w", "d", 1),
)  # fmt: skip
CATALOGUE = items_of("edcba")


@pytest.fixture(params=ALL, ids=lambda kind: kind.__name__)
def fitted(request):
    return request.param().fit(LOG, CATALOGUE, as_of=AS_OF)


def test_popular_counts_distinct_users():
    answer = Popular().fit(LOG, CATALOGUE, as_of=AS_OF).recommend(users_of("u"), 5, filter_seen=False)
    expected = pl.DataFrame(
        {
            "user_id": ["u"] * 5,
            "item_id": list("bcdae"),
            "rank": pl.Series([1, 2, 3, 4, 5], dtype=pl.Int32),
            "score": [2.0, 2.0, 2.0, 1.0, 0.0],
        }
    )
    assert_frame_equal(answer, expected)


def test_recent_popular_counts_users_of_its_days_then_falls_back_to_all_time():
    model = RecentPopular(days=30).fit(LOG, CATALOGUE, as_of=AS_OF)
    answer = model.recommend(users_of("x"), 5, filter_seen=False)
    assert lists_of(answer) == {"x": "abdce"}
    assert answer["score"].to_list() == pytest.approx([1, 1, 1, 2 / 3 - 1, -1])


def test_recent_popular_looks_back_exactly_its_days():
    model = RecentPopular(days=29.9).fit(LOG, CATALOGUE, as_of=AS_OF)
    assert lists_of(model.recommend(users_of("x"), 2, filter_seen=False)) == {"x": "bd"}


def test_buy_again_halves_an_event_every_half_life():
    model = BuyAgain(half_life_days=10).fit(LOG, CATALOGUE, as_of=AS_OF)
    answer = model.recommend(users_of("u"), 5, filter_seen=False)
    assert lists_of(answer) == {"u": "bacde"}
    own = [0.5**0.5, 0.5**5 + 0.5**4 + 0.5**3]
    assert answer["score"].to_list() == pytest.approx([*own, 2 / 3 - 1, 2 / 3 - 1, -1])


def test_buy_again_with_an_endless_half_life_counts_events():
    model = BuyAgain(half_life_days=float("inf")).fit(LOG, CATALOGUE, as_of=AS_OF)
    answer = model.recommend(users_of("u"), 2, filter_seen=False)
    assert list(answer.select("item_id", "score").iter_rows()) == [("a", 3.0), ("b", 1.0)]


def test_item_knn_sums_the_cosines_to_the_history():
    answer = ItemKNN().fit(LOG, CATALOGUE, as_of=AS_OF).recommend(users_of("u"), 5, filter_seen=True)
    # b (users u, v) meets c and d (users v, w) in one user of 2 x 2; a meets b alone.
    assert lists_of(answer) == {"u": "cde"}
    assert answer["score"].to_list() == pytest.approx([0.5, 0.5, -1])


def dense_item_knn(log: pl.DataFrame, items: pl.DataFrame, n_neighbours: int) -> tuple[list[str], np.ndarray]:
    """The scores of all users by loops over a dense matrix; nan where an item has no vote."""
    users, ids = sorted(set(log["user_id"])), sorted(items["item_id"])
    available = dict(items.iter_rows())
    taken = np.zeros((len(users), len(ids)))
    for user, item in log.select("user_id", "item_id").iter_rows():
        taken[users.index(user), ids.index(item)] = 1
    scores = np.full(taken.shape, np.nan)
    for j in range(len(ids)):
        cosines = []
        for i in range(len(ids)):
            together = taken[:, i] @ taken[:, j]
            if i != j and together and available[ids[i]]:
                cosines.append((-together / np.sqrt(taken[:, i].sum() * taken[:, j].sum()), i))
        for negative, i in sorted(cosines)[:n_neighbours]:
            for user in np.flatnonzero(taken[:, j]):
                scores[user, i] = np.nan_to_num(scores[user, i]) - negative
    return users, scores


@pytest.mark.parametrize("n_neighbours", [1, 3, 200])
@pytest.mark.parametrize("seed", range(3))
def test_item_knn_equals_the_dense_oracle(n_neighbours, seed, monkeypatch):
    monkeypatch.setattr(baselines, "_ITEM_BLOCK", 4)
    monkeypatch.setattr(baselines, "_BLOCK", 30)
    rng = np.random.default_rng(seed)
    ids = "abcdefghijklmn"
    log = interactions_of(*[(f"u{rng.integers(12):02}", rng.choice(list(ids)), 1) for _ in range(70)])
    items = items_of(ids, unavailable="cf")
    users, expected = dense_item_knn(log, items, n_neighbours)
    answer = ItemKNN(n_neighbours).fit(log, items, as_of=AS_OF).recommend(users_of(*users), len(ids), filter_seen=False)
    own = answer.filter(pl.col("score") > 0)
    assert own.height == np.count_nonzero(~np.isnan(expected))
    for user, item, score in own.select("user_id", "item_id", "score").iter_rows():
        assert score == pytest.approx(expected[users.index(user), ids.index(item)])


def test_scores_fall_ranks_rise_and_ties_follow_the_id(fitted):
    answer = fitted.recommend(users_of("w", "x", "u"), 5, filter_seen=False)
    assert answer["user_id"].unique(maintain_order=True).to_list() == ["w", "x", "u"]
    for part in answer.partition_by("user_id"):
        assert part["rank"].to_list() == [1, 2, 3, 4, 5]
        assert_frame_equal(part, part.sort("score", "item_id", descending=[True, False]))


def test_seen_items_are_left_out_when_asked(fitted):
    answer = lists_of(fitted.recommend(users_of("u", "v"), 5, filter_seen=True))
    assert {user: set(items) for user, items in answer.items()} == {"u": set("cde"), "v": set("ae")}


@pytest.mark.parametrize("kind", [Popular, ItemKNN, BuyAgain])
def test_unknown_users_get_popularity(kind):
    model = kind().fit(LOG, CATALOGUE, as_of=AS_OF)
    assert lists_of(model.recommend(users_of("nobody"), 5, filter_seen=True)) == {"nobody": "bcdae"}


def test_k_larger_than_the_catalogue_gives_the_catalogue(fitted):
    answer = fitted.recommend(users_of("u", "nobody"), 1000, filter_seen=False)
    assert answer.group_by("user_id").len().sort("user_id")["len"].to_list() == [5, 5]


def test_a_user_asked_for_twice_gets_one_list(fitted):
    twice = fitted.recommend(users_of("v", "u", "v"), 3, filter_seen=True)
    assert_frame_equal(twice, fitted.recommend(users_of("v", "u"), 3, filter_seen=True))


def test_batch_equals_single(fitted, monkeypatch):
    users = ["u", "v", "w", "nobody"]
    batch = fitted.recommend(users_of(*users), 4, filter_seen=True)
    monkeypatch.setattr(baselines, "_BLOCK", 1)
    singles = [fitted.recommend(users_of(user), 4, filter_seen=True) for user in users]
    assert_frame_equal(batch, pl.concat(singles))


def test_nobody_asked_gives_an_empty_frame_of_the_same_schema(fitted):
    empty = fitted.recommend(users_of(), 3, filter_seen=True)
    assert empty.height == 0
    assert empty.schema == fitted.recommend(users_of("u"), 3, filter_seen=True).schema


@pytest.mark.parametrize("kind", ALL)
def test_only_available_items_of_the_items_table_are_recommended(kind):
    model = kind().fit(LOG, items_of("abc", unavailable="b"), as_of=AS_OF)
    answer = model.recommend(users_of("u", "nobody"), 5, filter_seen=False)
    assert set(answer["item_id"]) == {"a", "c"}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("log", "items", "expected"),
    [(LOG.clear(), CATALOGUE, "abcde"), (LOG, CATALOGUE.clear(), ""), (LOG, items_of("z"), "z")],
    ids=["no interactions", "no items", "no interaction with the items"],
)
def test_degenerate_tables_give_what_there_is(kind, log, items, expected):
    answer = kind().fit(log, items, as_of=AS_OF).recommend(users_of("u"), 9, filter_seen=True)
    assert "".join(answer["item_id"]) == expected


@pytest.mark.parametrize("kind", ALL)
def test_rows_from_as_of_on_are_not_known(kind):
    later = interactions_of(("u", "e", 0), ("x", "e", -1), ("v", "e", -40))
    with_later = kind().fit(pl.concat([LOG, later]), CATALOGUE, as_of=AS_OF)
    users = users_of("u", "v", "x")
    assert_frame_equal(
        with_later.recommend(users, 5, filter_seen=True),
        kind().fit(LOG, CATALOGUE, as_of=AS_OF).recommend(users, 5, filter_seen=True),
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(1, 90)), min_size=1),
    seed=st.integers(0, 9),
    kind=st.sampled_from(ALL),
)
def test_permuting_rows_changes_nothing(rows, seed, kind):
    log = interactions_of(*rows)
    permuted = log.sample(fraction=1, shuffle=True, seed=seed)
    users = users_of(*"uvwxy")
    ours = kind().fit(log, CATALOGUE, as_of=AS_OF).recommend(users, 5, filter_seen=False)
    theirs = kind().fit(permuted, CATALOGUE.reverse(), as_of=AS_OF).recommend(users, 5, filter_seen=False)
    assert_frame_equal(ours, theirs, check_exact=True)


def test_integer_ids_come_back_as_integers():
    log = LOG.with_columns(user_id=pl.Series(range(9)), item_id=pl.Series([7, 7, 7, 8, 9, 8, 7, 9, 8]))
    items = pl.DataFrame({"item_id": [9, 8, 7], "available": [True] * 3})
    answer = Popular().fit(log, items, as_of=AS_OF).recommend(pl.Series([3, 77]), 2, filter_seen=False)
    assert answer.rows() == [(3, 7, 1, 4.0), (3, 8, 2, 3.0), (77, 7, 1, 4.0), (77, 8, 2, 3.0)]


def test_what_cannot_work_is_refused():
    with pytest.raises(NotFitted, match="Popular is not fitted; call fit before recommend"):
        Popular().recommend(users_of("u"), 1, filter_seen=True)
    with pytest.raises(InvalidConfig, match="k is 0; it must be at least 1"):
        Popular().fit(LOG, CATALOGUE, as_of=AS_OF).recommend(users_of("u"), 0, filter_seen=True)
    with pytest.raises(InvalidConfig, match="days is 0; it must be above 0"):
        RecentPopular(days=0)
    with pytest.raises(InvalidConfig, match="half_life_days is nan; it must be above 0"):
        BuyAgain(half_life_days=float("nan"))
    with pytest.raises(InvalidConfig, match="n_neighbours is 0; it must be at least 1"):
        ItemKNN(n_neighbours=0)
