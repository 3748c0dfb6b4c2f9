from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ranking.features import DAY, FeatureConfig, ItemTable, build_features, feature_names, item_statistics
from ranking.statistics import CLOCKS

CONFIG = FeatureConfig(windows_days=(3, 10))
MOMENT = 40 * DAY
N_ITEMS = 8
INT = {"user_row": pl.Int32, "item_row": pl.Int32}
GROUPS = pl.DataFrame(
    {"item_row": range(N_ITEMS), "category": [0, 0, 1, 1, 2, 2, 2, 3], "text": [0, 1, 2, 2, 2, 3, 4, 5]},
    schema_overrides={"item_row": pl.Int32, "category": pl.Int32, "text": pl.Int32},
)


def history_of(events: list[tuple[int, int, float]]) -> pl.DataFrame:
    """Events are (user, item, days since the epoch)."""
    frame = pl.DataFrame(events, schema={**INT, "day": pl.Float64}, orient="row")
    return frame.select("user_row", "item_row", seconds=pl.col("day") * DAY)


def random_events(seed: int = 0, n: int = 120, n_users: int = 6) -> pl.DataFrame:
    """Some users and items without events; rows that are there twice; times on the hour."""
    rng = np.random.default_rng(seed)
    hours = rng.integers(0, 40 * 24, size=n)
    events = zip(rng.integers(0, n_users - 1, n), rng.integers(0, N_ITEMS - 2, n), hours / 24, strict=True)
    frame = history_of([(int(user), int(item), float(day)) for user, item, day in events])
    return pl.concat([frame, frame.head(10)])


def all_pairs(n_users: int = 6) -> pl.DataFrame:
    pairs = [(user, item) for user in range(n_users) for item in range(N_ITEMS)]
    shuffled = np.random.default_rng(1).permutation(len(pairs))
    return pl.DataFrame([pairs[place] for place in shuffled], schema=INT, orient="row").with_columns(
        vector_score=pl.int_range(pl.len()) / 7
    )


def moments_of(n_users: int = 6) -> pl.DataFrame:
    """Each user has a moment of his own, all after the last event."""
    users = pl.Series("user_row", range(n_users), dtype=pl.Int32)
    return pl.DataFrame({"user_row": users, "moment": [MOMENT + 0.3 * user * DAY for user in range(n_users)]})


def described(pairs: pl.DataFrame, history: pl.DataFrame, statistics: pl.DataFrame, *rest: object) -> pl.DataFrame:
    """`build_features` with frames on both sides."""
    columns = {name: values.to_numpy() for name, values in pairs.to_dict().items()}
    return pl.DataFrame(build_features(columns, history, ItemTable.of(statistics), *rest), nan_to_null=True)


def features(history: pl.DataFrame, pairs: pl.DataFrame | None = None) -> pl.DataFrame:
    statistics = item_statistics(history, GROUPS, MOMENT, CONFIG)
    return described(all_pairs() if pairs is None else pairs, history, statistics, moments_of(), CONFIG)


ITEM_SQL = """
with counts as (
    select item_row, count(*) as n, count(distinct user_row) as users,
        min($moment - seconds) / 86400 as newest, max($moment - seconds) / 86400 as oldest,
        count(*) filter ($moment - seconds <= 3 * 86400) as n3, count(*) filter ($moment - seconds <= 10 * 86400) as n10
    from history group by item_row
), filled as (
    select g.*, coalesce(n, 0) as n, coalesce(users, 0) as users, newest, oldest,
        coalesce(n3, 0) as n3, coalesce(n10, 0) as n10
    from GROUPS g left join counts using (item_row)
)
select item_row, n as item_count, users as item_users, newest as item_days_since_last,
    oldest as item_days_since_first, n3 as item_count_3d, n10 as item_count_10d,
    n / nullif(users, 0) as item_repeat_rate, (n3 + 1) / (n10 + 1) as item_trend,
    (n3 + 1) * (n10 + 1) / pow(n10 + 1, 2) as item_acceleration,
    (rank() over (order by n) + (count(*) over (partition by n) - 1) / 2) / count(*) over () as
        item_popularity_percentile,
    (rank() over (order by n3) + (count(*) over (partition by n3) - 1) / 2) / count(*) over () as
        item_popularity_percentile_3d,
    (sum(n3) over (partition by category) + 1) / (sum(n10) over (partition by category) + 1) as category_trend,
    (sum(n3) over (partition by text) + 1) / (sum(n10) over (partition by text) + 1) as text_trend,
    n / nullif(sum(n) over (partition by text), 0) as item_share_of_text,
    sum(n) over (partition by category) as category_popularity, sum(n) over (partition by text) as text_popularity
from filled order by item_row
"""

PAIR_SQL = """
with aged as (
    select h.user_row, h.item_row, category, text, seconds, (moment - seconds) / 86400 as age
    from history h join moments using (user_row) join GROUPS using (item_row)
), pair as (
    select user_row, item_row, count(*) as n, count(distinct floor(seconds / 86400)) as days,
        min(age) as newest, max(age) as oldest,
        count(*) filter (age <= 3) as n3, count(*) filter (age <= 10) as n10
    from aged group by user_row, item_row
), person as (
    select user_row, count(*) as events, count(distinct item_row) as items,
        count(distinct floor(seconds / 86400)) as days, min(age) as newest, max(age) as oldest,
        count(*) filter (age <= 3) as n3, count(*) filter (age <= 10) as n10
    from aged group by user_row
), usual as (
    select user_row, avg(item_popularity_percentile) as popularity
    from aged join statistics using (item_row) group by user_row
), by_category as (
    select user_row, category, count(*) as n, min(age) as newest from aged group by user_row, category
), by_text as (
    select user_row, text, count(*) as n, min(age) as newest from aged group by user_row, text
)
select p.user_row, p.item_row, p.vector_score,
    coalesce(pair.n, 0) as pair_count, coalesce(pair.days, 0) as pair_days, pair.newest as pair_days_since_last,
    pair.oldest as pair_days_since_first,
    coalesce(pair.n3, 0) as pair_count_3d, coalesce(pair.n10, 0) as pair_count_10d,
    case when pair.days > 1 then (pair.oldest - pair.newest) / (pair.days - 1) end as pair_interval,
    case when pair.days > 1 then pair.newest * (pair.days - 1) / (pair.oldest - pair.newest) end as pair_overdue,
    coalesce(pair.n, 0) / person.events as pair_share,
    person.events as user_events, person.items as user_items, person.days as user_days,
    person.newest as user_days_since_last, person.oldest as user_days_since_first,
    person.n3 as user_events_3d, person.n10 as user_events_10d,
    1 - person.items / person.events as user_repeat_share, person.events / person.days as user_events_per_day,
    (person.n3 + 1) / (person.n10 + 1) as user_trend, usual.popularity as user_popularity_mean,
    s.item_popularity_percentile - usual.popularity as pair_popularity_gap,
    coalesce(c.n, 0) as user_category_count, c.newest as user_category_days_since_last,
    coalesce(c.n, 0) / person.events as user_category_share,
    coalesce(t.n, 0) as user_text_count, t.newest as user_text_days_since_last,
    coalesce(t.n, 0) / person.events as user_text_share
from pairs p join GROUPS g using (item_row) join statistics s using (item_row)
left join usual on usual.user_row = p.user_row
left join pair on pair.user_row = p.user_row and pair.item_row = p.item_row
left join person on person.user_row = p.user_row
left join by_category c on c.user_row = p.user_row and c.category = g.category
left join by_text t on t.user_row = p.user_row and t.text = g.text
"""


def sql(query: str, tables: dict[str, pl.DataFrame], **parameters: float) -> pl.DataFrame:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            columns = ", ".join(f"{column} double" for column in table.columns)
            connection.execute(f"create table {name} ({columns})")
            connection.executemany(f"insert into {name} values ({', '.join('?' * table.width)})", table.rows())
        result = connection.execute(query, parameters)
        names = [column[0] for column in result.description]
        return pl.DataFrame(result.fetchall(), schema=dict.fromkeys(names, pl.Float64), orient="row")


def compare(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    assert set(found.columns) == set(expected.columns)
    as_doubles = found.select(pl.col(expected.columns).cast(pl.Float64))
    assert_frame_equal(as_doubles, expected, rel_tol=1e-5, abs_tol=1e-6)


class TestAgainstSql:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_item_statistics(self, seed):
        history = random_events(seed)
        found = item_statistics(history, GROUPS, MOMENT, CONFIG)
        expected = sql(ITEM_SQL, {"history": history, "GROUPS": GROUPS}, moment=MOMENT)
        compare(found.drop("category", "text").sort("item_row"), expected)
        assert set(found.drop("item_row", "category", "text").dtypes) == {pl.Float32}

    @pytest.mark.parametrize("seed", [0, 1])
    def test_every_column_of_the_pairs(self, seed):
        history, pairs = random_events(seed), all_pairs()
        tables = {"history": history, "GROUPS": GROUPS, "moments": moments_of(), "pairs": pairs}
        statistics = sql(ITEM_SQL, {"history": history, "GROUPS": GROUPS}, moment=MOMENT)
        expected = sql(PAIR_SQL, {**tables, "statistics": statistics}).join(statistics, on="item_row")
        keys = ["user_row", "item_row"]
        compare(features(history, pairs).sort(keys), expected.sort(keys))


class TestBuildFeatures:
    def test_keeps_the_pairs_their_order_and_their_columns(self):
        pairs = all_pairs()
        found = features(random_events(), pairs)
        assert_frame_equal(found.select(pairs.columns), pairs)
        assert {found.schema[name] for name in found.columns if name not in pairs.columns} == {pl.Float32}

    def test_counts_a_repeated_interaction_as_often_as_it_is_there(self):
        found = features(history_of([(0, 1, 39.5), (0, 1, 39.5)])).filter(user_row=0, item_row=1)
        assert found["pair_count"].item() == 2
        assert found["pair_days"].item() == 1
        assert found["pair_interval"].item() is None
        assert found["item_repeat_rate"].item() == 2

    def test_of_a_user_without_history_are_zeros_and_nulls(self):
        found = features(random_events()).filter(user_row=5)
        counts = [
            "pair_count",
            "pair_days",
            "pair_count_3d",
            "pair_count_10d",
            "user_category_count",
            "user_text_count",
        ]
        assert not found.select(counts).to_numpy().any()
        mine = [name for name in found.columns if name.startswith(("pair_", "user_")) and name not in counts]
        assert found.select(mine).drop("user_row").null_count().row(0) == (N_ITEMS,) * (len(mine) - 1)

    def test_of_an_item_without_history_are_zeros_and_nulls(self):
        found = features(random_events()).filter(item_row=7)
        assert not found.select("item_count", "item_users", "item_count_3d", "category_popularity").to_numpy().any()
        nothing = ["item_days_since_last", "item_days_since_first", "item_repeat_rate", "item_share_of_text"]
        assert found.select(nothing).null_count().row(0) == (6,) * 4

    def test_are_finite_or_null(self):
        found = features(random_events())
        assert not any(found[name].is_infinite().any() for name in found.columns if found.schema[name].is_float())

    def test_of_no_pairs_have_the_same_columns(self):
        empty = features(random_events(), all_pairs().head(0))
        assert empty.schema == features(random_events()).schema
        assert empty.height == 0

    def test_without_any_history_have_the_same_columns(self):
        nothing = features(history_of([]))
        assert nothing.schema == features(random_events()).schema
        assert nothing["pair_count"].sum() == 0

    @pytest.mark.parametrize("days_late", [0.0, 0.5])
    def test_refuses_a_row_at_or_after_its_users_moment(self, days_late):
        statistics = item_statistics(history_of([]), GROUPS, MOMENT, CONFIG)
        late = history_of([(0, 1, 3.0), (2, 4, 40.6 + days_late)])
        with pytest.raises(
            ValueError, match=r"1 history rows lie at or after their user's moment, first: .*'item_row': 4"
        ):
            described(all_pairs(), late, statistics, moments_of(), CONFIG)

    def test_takes_a_row_just_before_its_users_moment(self):
        statistics = item_statistics(history_of([]), GROUPS, MOMENT, CONFIG)
        found = described(all_pairs(), history_of([(2, 4, 40.59999)]), statistics, moments_of(), CONFIG)
        assert found["pair_count"].sum() == 1


class TestItemStatistics:
    @pytest.mark.parametrize("day", [40.0, 41.0])
    def test_refuses_a_row_at_or_after_the_moment(self, day):
        late = history_of([(0, 1, 3.0), (2, 4, day)])
        with pytest.raises(
            ValueError, match=r"1 history rows lie at or after the moment 3456000.0, first: .*'item_row': 4"
        ):
            item_statistics(late, GROUPS, MOMENT, CONFIG)

    def test_do_not_depend_on_the_order_of_the_rows(self):
        history = random_events()
        shuffled = history.sample(fraction=1.0, shuffle=True, seed=0)
        key = "item_row"
        assert_frame_equal(
            item_statistics(history, GROUPS, MOMENT, CONFIG).sort(key),
            item_statistics(shuffled, GROUPS, MOMENT, CONFIG).sort(key),
        )


KINDS = ("view", "buy")
PRICES = pl.Series("item__price", [1.0, 2.0, 2.0, None, 10.0, 0.0, 4.0, 3.0], dtype=pl.Float32)


def rich(history: pl.DataFrame, *, everybody: pl.DataFrame | None = None) -> pl.DataFrame:
    """Features of every pair with prices, two kinds of events and times of day; item rows follow all others."""
    everybody = history if everybody is None else everybody
    statistics = item_statistics(everybody, GROUPS, MOMENT, CONFIG, kinds=KINDS, clock=True).with_columns(PRICES)
    return described(all_pairs(), history, statistics, moments_of(), CONFIG, KINDS)


def with_kinds(history: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    drawn = np.random.default_rng(seed).integers(0, 2, len(history))
    return history.with_columns(event_row=pl.Series(drawn, dtype=pl.Int16))


class TestKindsPricesAndTimes:
    history = with_kinds(random_events())
    found = rich(history)

    def test_rates_are_shares_of_the_events(self):
        for key, prefix in (("item_row", "item"), ("user_row", "user")):
            shares = self.history.group_by(key).agg(view=(pl.col("event_row") == 0).mean())
            expected = self.found.select(key).join(shares, on=key, how="left", maintain_order="left")["view"]
            assert self.found[f"{prefix}_rate_view"].to_list() == pytest.approx(expected.to_list())
            both = self.found[f"{prefix}_rate_view"] + self.found[f"{prefix}_rate_buy"]
            assert both.drop_nulls().to_list() == pytest.approx([1.0] * len(both.drop_nulls()))

    def test_of_one_kind_there_are_no_rates(self):
        statistics = item_statistics(self.history, GROUPS, MOMENT, CONFIG, kinds=("view",))
        found = described(all_pairs(), self.history, statistics, moments_of(), CONFIG, ("view",))
        assert not [name for name in found.columns if "rate_" in name]

    def test_prices_lie_against_those_of_the_history(self):
        price = PRICES.to_list()
        for row in self.found.iter_rows(named=True):
            own = [price[item] for item in self.history.filter(user_row=row["user_row"])["item_row"]]
            own = [value for value in own if value is not None]
            here, mean = price[row["item_row"]], sum(own) / len(own) if own else None
            assert row["user_price_mean"] == (pytest.approx(mean) if own else None)
            if here is None or not mean:
                assert row["user_price_gap"] is None
            else:
                assert row["user_price_gap"] == pytest.approx((here - mean) / mean, rel=1e-5, abs=1e-6)
            share = sum(value <= here for value in own) / len(own) if own and here is not None else None
            assert row["user_price_percentile"] == (None if share is None else pytest.approx(share))

    def test_without_any_price_there_are_no_price_features(self):
        statistics = item_statistics(self.history, GROUPS, MOMENT, CONFIG).with_columns(item__price=pl.lit(None))
        found = described(all_pairs(), self.history, statistics, moments_of(), CONFIG)
        assert not [name for name in found.columns if name.startswith("user_price")]

    def test_lifts_are_of_the_hour_and_weekday_of_the_moment(self):
        slots = self.history.with_columns(
            hour=(pl.col("seconds") % DAY // 3600), weekday=(pl.col("seconds") // DAY % 7)
        ).join(GROUPS, on="item_row")
        for row in self.found.iter_rows(named=True):
            moment = MOMENT + 0.3 * row["user_row"] * DAY
            for unit, slot in (("hour", moment % DAY // 3600), ("weekday", moment // DAY % 7)):
                usual = (slots[unit] == slot).mean()
                for name, key, value in (
                    ("item", "item_row", row["item_row"]),
                    ("category", "category", GROUPS["category"][row["item_row"]]),
                ):
                    own = slots.filter(pl.col(key) == value)
                    there = (own[unit] == slot).sum()
                    lift = (there + 10 * usual) / (len(own) + 10) / usual if usual and len(own) else None
                    assert row[f"{name}_{unit}_lift"] == (None if lift is None else pytest.approx(lift, rel=1e-5))

    def test_dates_have_no_hours(self):
        dates = self.history.with_columns(seconds=(pl.col("seconds") // DAY) * DAY)
        statistics = item_statistics(dates, GROUPS, MOMENT, CONFIG, clock=True)
        assert statistics.columns == item_statistics(self.history, GROUPS, MOMENT, CONFIG, clock=True).columns
        assert all(np.isnan(statistics[name].to_numpy()).all() for name in CLOCKS)

    def test_are_finite_or_null(self):
        assert not any(self.found[name].is_infinite().any() for name in self.found.columns if "row" not in name)

    def test_without_any_history_are_zeros_and_nulls(self):
        nothing = rich(self.history.clear(), everybody=self.history)
        assert nothing.columns == self.found.columns
        assert nothing["user_price_percentile"].null_count() == len(nothing)
        assert nothing["user_rate_buy"].null_count() == len(nothing)


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, N_ITEMS - 1), st.floats(0, 39.9)), max_size=25)


class TestProperties:
    @settings(max_examples=25, deadline=None)
    @given(EVENTS, EVENTS, st.integers(0, 5))
    def test_rows_of_other_users_change_no_feature_of_a_pair_or_a_user(self, events, others, user):
        before = history_of(events)
        kept = before.filter(user_row=user)
        after = pl.concat([history_of(others).filter(pl.col("user_row") != user), kept])
        of_all = ("user_popularity_mean", "pair_popularity_gap")  # popularity is what the others make it
        own = [pl.col("user_row", "item_row"), pl.col("^(pair|user)_.*$").exclude("user_row", *of_all)]
        first, second = (features(history).filter(user_row=user).select(*own) for history in (before, after))
        assert_frame_equal(first, second)

    @settings(max_examples=25, deadline=None)
    @given(EVENTS)
    def test_many_users_equal_one_by_one(self, events):
        history = history_of(events)
        statistics = item_statistics(history, GROUPS, MOMENT, CONFIG)
        together = features(history)
        for user in range(6):
            mine = all_pairs().filter(user_row=user)
            alone = described(mine, history.filter(user_row=user), statistics, moments_of(), CONFIG)
            assert_frame_equal(alone, together.filter(user_row=user))

    @settings(max_examples=20, deadline=None)
    @given(EVENTS, st.integers(0, 5))
    def test_of_a_user_depend_on_his_own_history_and_the_statistics_alone(self, events, user):
        history = with_kinds(history_of(events))
        everybody = with_kinds(random_events())
        together = rich(history, everybody=everybody).filter(user_row=user)
        assert_frame_equal(rich(history.filter(user_row=user), everybody=everybody).filter(user_row=user), together)
        shuffled = history.sample(fraction=1.0, shuffle=True, seed=1)
        assert_frame_equal(rich(shuffled, everybody=everybody).filter(user_row=user), together)


def test_feature_names_are_the_numeric_and_boolean_columns_that_are_not_excluded():
    frame = pl.DataFrame({"user_row": [1], "label": [1], "a": [0.5], "b": [True], "c": ["x"], "d": [[1]], "e": [None]})
    assert feature_names(frame, exclude=("user_row", "label")) == ["a", "b"]


@pytest.mark.parametrize("windows", [(), (0, 7), (-1,)])
def test_config_refuses_windows_that_are_no_days(windows):
    with pytest.raises(ValueError, match="must be positive whole days"):
        FeatureConfig(windows_days=windows)


def test_config_refuses_to_compare_with_nothing():
    with pytest.raises(ValueError, match="similar_length=0 must be at least 1"):
        FeatureConfig(similar_length=0)


@pytest.mark.parametrize("windows", [(30, 7), (7, 7)])
def test_config_refuses_windows_out_of_order(windows):
    with pytest.raises(ValueError, match="must ascend without repetition"):
        FeatureConfig(windows_days=windows)
