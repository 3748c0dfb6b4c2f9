"""Columns as groups: few and named, in their natural order, whatever the column holds."""

from datetime import UTC, datetime

import polars as pl
import pytest

from recsys.bench import prepare, run_bench
from recsys.bench.groups import MAX_GROUPS, grouped
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig
from recsys.synthetic import generate


def groups_of(values, **options):
    table = pl.DataFrame({"item_id": range(len(values)), "x": values})
    made = grouped(table, "item_id", **options)
    return made["x"] if "x" in made.columns else None


def test_few_values_are_groups_by_name():
    assert groups_of(["b", "a", None, "b"]).dtype.categories.to_list() == ["a", "b"]
    assert groups_of(["b", "a", None, "b"]).to_list() == ["b", "a", None, "b"]
    assert groups_of([True, False, True]).to_list() == ["true", "false", "true"]
    assert groups_of([10, 9, 10]).dtype.categories.to_list() == ["9", "10"]
    assert groups_of([["b", "c"], ["a"], [], ["b"]]).to_list() == ["b", "a", None, "b"]


def test_the_rarest_of_many_are_others():
    values = [letter for place, letter in enumerate("abcdefghijklmnop") for _ in range(place + 1)] + ["other", None]
    found = groups_of(values)
    order = found.dtype.categories.to_list()
    assert (len(order), order[0], order[-1]) == (MAX_GROUPS, "p", "other")
    assert found.to_list()[:3] == ["other"] * 3
    assert found.to_list()[-3:] == ["p", "other", None]


def test_numbers_and_dates_are_four_bands_of_their_own_ends():
    found = groups_of([*range(20), None])
    assert found.dtype.categories.to_list() == ["0–4", "5–9", "10–14", "15–19"]
    assert found.to_list()[::7] == ["0–4", "5–9", "10–14"]
    assert found[20] is None
    tied = groups_of([0.5] * 30 + list(map(float, range(14))))
    assert tied.dtype.categories.to_list() == ["0", "0.5", "1–2", "3–13"]
    seconds = groups_of([1_531_292_611 + 10_000_000 * step for step in range(16)])
    assert seconds.dtype.categories[0] == "1531M–1561M"
    days = groups_of([datetime(2024, month, 1, tzinfo=UTC) for month in range(1, 13)])
    assert days.dtype.categories[0] == "2024-01-01–2024-03-01"


def test_what_makes_no_groups_is_left_out_unless_it_is_named():
    texts = [f"id {number}" for number in range(40)]
    assert groups_of(["same"] * 5) is None
    assert groups_of([None, "a"]) is None
    assert groups_of(texts) is None
    assert groups_of(texts, names=["x"]).value_counts()["count"].max() == 40 - (MAX_GROUPS - 1)
    many = pl.DataFrame({"user_id": [1, 2]} | {f"c{number}": ["a", "b"] for number in range(9)})
    assert grouped(many, "user_id").width == 1 + 6
    assert grouped(many, "user_id", ["c8", "elsewhere"]).columns == ["user_id", "c8"]


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    items = made.items.with_columns(length=pl.col("title").str.len_chars())
    users = made.interactions.select("user_id").unique().sort("user_id").with_row_index("age")
    return Dataset(name="synthetic", interactions=made.interactions, items=items, users=users)


def test_any_column_is_a_segment(data):
    (table,) = run_bench(data, systems=["popular"], segments=["length", "age", "title"], n_samples=20).tables
    found = {}
    for part in table.segments:
        found.setdefault(part.segment, []).append(part)
    assert list(found) == ["items", "item popularity", "item: length", "item: title", "history length", "user: age"]
    assert [part.value for part in found["user: age"]] == ["0–14", "15–29", "30–44", "45–59"]
    assert sum(part.n_users for part in found["user: age"]) == table.n_users
    assert [part.value for part in found["item popularity"]] == ["head", "middle", "tail"]
    gaps = {row.segment for row in table.fairness if row.kind == "metric gap"}
    exposed = {row.segment for row in table.fairness if row.kind == "exposure"}
    assert (gaps, exposed) == ({"history length", "user: age"}, {"item popularity", "item: length", "item: title"})


def test_a_segment_of_no_column_is_refused(data):
    with pytest.raises(InvalidConfig, match=r"segments: no column brnd; there are age, .*length"):
        prepare(data, segments=["length", "brnd"])
