"""A planted leak is caught, and honest columns are not."""

import numpy as np
import polars as pl
import pytest

from recsys.bench import prepare, run_bench
from recsys.bench.groups import MAX_GROUPS
from recsys.bench.leaks import knowledge, leaking_columns, suspicions, too_good
from recsys.bench.result import Estimate, Row, Table
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.synthetic import generate


def planted(**columns):
    """The generated data with columns made from the counts in the whole and in the last tenth."""
    made = generate(n_users=150, n_items=120, n_topics=4, events_per_user=18, n_cold_items=5)
    cut = prepare(Dataset(name="x", interactions=made.interactions, items=made.items)).split
    future = made.items.select("item_id").join(cut.test.group_by("item_id").len(), on="item_id", how="left")
    whole = made.items.select("item_id").join(made.interactions.group_by("item_id").len(), on="item_id", how="left")
    counts = {"future": future["len"].fill_null(0).to_numpy(), "whole": whole["len"].fill_null(0).to_numpy()}
    rng = np.random.default_rng(0)
    given = {name: pl.Series(make(counts, rng).astype(np.float64)) for name, make in columns.items()}
    return Dataset(name="planted", interactions=made.interactions, items=made.items.with_columns(**given))


LEAKS = {
    "future_count": lambda counts, rng: counts["future"],
    "noisy_future": lambda counts, rng: counts["future"] + rng.normal(0, 0.5, len(counts["future"])),
    "future_rank": lambda counts, rng: np.sqrt(counts["future"]) * 100,
    "count_of_all_time": lambda counts, rng: counts["whole"],
}
HONEST = {
    "noise": lambda counts, rng: rng.normal(size=len(counts["future"])),
    "past_count": lambda counts, rng: counts["whole"] - counts["future"],
    "constant": lambda counts, rng: np.ones(len(counts["future"])),
    "noisy_past": lambda counts, rng: counts["whole"] - counts["future"] + rng.normal(0, 3, len(counts["future"])),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_reads_the_future_is_caught(name):
    result = run_bench(planted(**{name: LEAKS[name]}), systems=["popular"], n_samples=20)
    assert [(flag.kind, flag.what) for flag in result.flags] == [("leak", name)]
    assert "Name it in ignore_columns" in result.flags[0].message


def test_a_truth_value_that_reads_the_future_is_caught():
    data = planted(future=LEAKS["future_count"])
    sold = data.items.with_columns(sold_later=pl.col("future") > pl.col("future").median()).drop("future")
    prepared = prepare(Dataset(name="x", interactions=data.interactions, items=sold))
    assert [flag.what for flag in leaking_columns(prepared, prepared.cuts[0])] == ["sold_later"]


def test_words_and_written_numbers_that_read_the_future_are_caught():
    data = planted(future=LEAKS["future_count"])
    level = pl.when(pl.col("future") > pl.col("future").median()).then(pl.lit("bestseller")).otherwise(pl.lit("shelf"))
    said = {"few": pl.col("future").clip(0, 9), "many": pl.col("future") + pl.int_range(pl.len()) / 1e6}
    written = data.items.with_columns(level=level, **{name: part.cast(pl.String) for name, part in said.items()})
    prepared = prepare(Dataset(name="x", interactions=data.interactions, items=written.drop("future")))
    assert (written["few"].n_unique() <= MAX_GROUPS, written["many"].n_unique()) == (True, written.height)
    assert [flag.what for flag in leaking_columns(prepared, prepared.cuts[0])] == ["level", "few", "many"]


def test_columns_of_one_name_in_both_tables_are_told_apart():
    data = planted(count=LEAKS["future_count"])
    cut = prepare(Dataset(name="x", interactions=data.interactions, items=data.items)).split
    counts = cut.test.group_by("user_id").agg(count=pl.len())
    users = data.interactions.select("user_id").unique().join(counts, on="user_id", how="left").fill_null(0)
    asked = prepare(Dataset(name="x", interactions=data.interactions, items=data.items, users=users))
    note = "ranker: the feature 'user__count' alone tells what was taken (area under the ROC curve 0.990)."
    assert [flag.what for flag in suspicions(asked, (), [note])] == ["user: count", "count"]


def test_a_column_of_the_users_that_reads_the_future_is_caught_and_an_honest_one_is_not():
    made = generate(n_users=150, n_items=120, n_topics=4, events_per_user=18, n_cold_items=5)
    cut = prepare(Dataset(name="x", interactions=made.interactions, items=made.items)).split
    later, before = (rows.group_by("user_id").agg(n=pl.len()) for rows in (cut.test, cut.train))
    users = made.interactions.select("user_id").unique(maintain_order=True)
    users = users.join(later.rename({"n": "orders_next_month"}), on="user_id", how="left", maintain_order="left")
    users = users.join(before.rename({"n": "orders_so_far"}), on="user_id", how="left", maintain_order="left")
    asked = Dataset(name="x", interactions=made.interactions, items=made.items, users=users.fill_null(0))
    result = run_bench(asked, systems=["popular"], n_samples=20)
    assert [(flag.kind, flag.what) for flag in result.flags] == [("leak", "user: orders_next_month")]
    assert "user column 'orders_next_month' knows the test" in result.flags[0].message
    assert "Leave it out of the users table" in result.flags[0].message
    ignored = RecommenderConfig(ignore_columns=("orders_next_month",))  # the ranker reads it all the same
    named = prepare(asked, ignored)
    assert [flag.what for flag in leaking_columns(named, named.cuts[0])] == ["user: orders_next_month"]
    one_each = prepare(asked, split="leave-last-out", min_items=2)
    assert leaking_columns(one_each, one_each.cuts[0]) == []


def test_honest_columns_are_not():
    prepared = prepare(planted(**HONEST))
    assert leaking_columns(prepared, prepared.cuts[0]) == []


def test_a_column_that_is_ignored_is_not_looked_at():
    prepared = prepare(planted(future_count=LEAKS["future_count"]), RecommenderConfig(ignore_columns=("future_count",)))
    assert leaking_columns(prepared, prepared.cuts[0]) == []


def test_one_outlier_is_no_knowledge():
    rng = np.random.default_rng(1)
    column, future, past = rng.normal(size=100), rng.poisson(3, 100).astype(float), [rng.poisson(9, 100).astype(float)]
    column[0], future[0] = 1e6, 1e6
    assert knowledge(column, future, past) is None


def test_what_the_fit_found_is_a_flag():
    prepared = prepare(planted())
    note = "ranker: the feature 'item__votes' alone tells what was taken (area under the ROC curve 0.990)."
    (flag,) = suspicions(prepared, (), [note])
    assert (flag.kind, flag.what) == ("leak", "votes")


def row(system, ndcg, recall, ceiling):
    first = ceiling / 2 if system == "two-stage" else ceiling  # a second stage chooses from more than the first hundred
    means = {"ndcg@10": ndcg, "recall@10": recall, "candidate_recall@100": first}
    means |= {"ceiling": ceiling if system == "two-stage" else None}
    return Row(
        system=system, metrics={name: Estimate(mean=mean) for name, mean in means.items()}, short_lists=0,
        calibration=None, fit_seconds=1, ask_seconds=1, users_per_second=1, peak_mb=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ndcg", "recall", "ceiling", "reason"),
    [
        (0.97, 0.98, 0.99, "almost the best possible"),
        (0.5, 0.57, 0.6, "10.0 times the best baseline's, and the first 10 hold 95%"),
        (0.5, 0.3, 0.6, None),
        (0.15, 0.57, 0.6, None),
        (0.08, 0.08, 0.08, None),
    ],
)
def test_systems_that_are_too_good(ndcg, recall, ceiling, reason):
    rows = (row("popular", 0.05, 0.1, 0.3), row("two-stage", ndcg, recall, ceiling))
    table = Table(
        protocol="new items only", filter_seen=True, n_users=100, n_pairs=100, n_cold_pairs=0, rows=rows,
        differences=(),
    )  # fmt: skip
    flags = too_good([table], 10)
    assert len(flags) == (reason is not None)
    if reason:
        assert (flags[0].kind, flags[0].what) == ("too good to be true", "two-stage")
        assert reason in flags[0].message
