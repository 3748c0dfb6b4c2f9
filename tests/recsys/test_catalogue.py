from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.catalogue import MAX_GROUPS, Catalogue, user_numbers, user_values


def items_of(n: int = 4, **further: list) -> pl.DataFrame:
    """A canonical items table: two items share a text, the last has none."""
    titles = ["pan", "shoe", "pan", *(f"item {row}" for row in range(n)), ""]
    frame = pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(n)],
            "title": [*titles[: n - 1], ""],
            "description": [""] * n,
            "categories": [["home", "kitchen"], ["sport"], ["home", "kitchen"], *[[]] * n][:n],
            "price": [1.5, None, 3.0, *[4.0] * n][:n],
            "created_at": [datetime(2024, 1, 1, tzinfo=UTC)] * n,
            "available": [True, False, *[True] * n][:n],
        },
        schema_overrides={"categories": pl.List(pl.String), "price": pl.Float64},
    )
    return frame.with_columns(**{name: pl.Series(values) for name, values in further.items()})


class TestTexts:
    def test_are_distinct_and_every_item_finds_its_own(self):
        catalogue = Catalogue.of(items_of())
        assert len(catalogue) == 4
        assert len(catalogue.texts) == len(set(catalogue.texts)) == 3
        assert catalogue.text_rows[0] == catalogue.text_rows[2]
        assert catalogue.text_rows.dtype == np.int64
        assert "shoe" in catalogue.text_of(1)
        assert catalogue.text_of(3) == ""

    def test_has_text_is_false_for_items_without_any(self):
        assert Catalogue.of(items_of()).has_text.tolist() == [True, True, True, False]

    def test_short_text_is_the_beginning(self):
        catalogue = Catalogue.of(items_of().with_columns(title=pl.lit("word " * 60)))
        assert catalogue.short_text_of(0) == catalogue.text_of(0)[:80]
        assert len(catalogue.text_of(0)) > 80


class TestRows:
    catalogue = Catalogue.of(items_of())

    def test_rows_of_unknown_ids_are_minus_one(self):
        rows = self.catalogue.rows_of(pl.Series(["i2", "nobody", "i0", "i2", None]))
        assert rows.tolist() == [2, -1, 0, 2, -1]
        assert rows.dtype == np.int64

    def test_rows_of_nothing_are_nothing(self):
        assert self.catalogue.rows_of(pl.Series([])).shape == (0,)

    def test_ids_of_another_type_are_unknown_and_no_error(self):
        numbered = Catalogue.of(items_of().with_columns(item_id=pl.int_range(pl.len())))
        assert numbered.rows_of(pl.Series(["3", "x"])).tolist() == [3, -1]
        assert self.catalogue.rows_of(pl.Series([3])).tolist() == [-1]

    def test_ids_of_brings_back_what_rows_of_took(self):
        ids = pl.Series("item_id", ["i3", "i1"])
        assert self.catalogue.ids_of(self.catalogue.rows_of(ids)).to_list() == ids.to_list()

    def test_available_is_a_mask(self):
        assert self.catalogue.available.tolist() == [True, False, True, True]
        assert self.catalogue.available.dtype == np.bool_


class TestGroups:
    def test_are_codes_of_the_innermost_category_and_of_the_text(self):
        groups = Catalogue.of(items_of()).groups
        assert groups.columns == ["item_row", "category", "text"]
        assert set(groups.dtypes) == {pl.Int32}
        assert groups["category"].to_list() == [1, 2, 1, 0]  # "", kitchen, sport
        assert groups["text"].to_list() == Catalogue.of(items_of()).text_rows.tolist()

    @pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["acme", "zeta"])])
    def test_are_made_from_text_columns_with_nulls_as_a_group_of_their_own(self, dtype):
        column = pl.Series(["zeta", None, "acme", "zeta"]).cast(dtype)
        groups = Catalogue.of(items_of(brand=column)).groups
        assert groups["of_brand"].to_list() == [2, 0, 1, 2]
        assert groups.schema["of_brand"] == pl.Int32

    def test_are_not_made_from_columns_that_are_constant_or_name_things(self):
        n = MAX_GROUPS + 1
        items = items_of(n, same=["x"] * n, name=[f"n{row}" for row in range(n)], kind=["a"] + ["b"] * (n - 1))
        assert Catalogue.of(items).groups.columns == ["item_row", "category", "text", "of_kind"]

    def test_do_not_depend_on_the_order_of_the_rows(self):
        items = items_of(6, brand=["b", "a", "c", "b", None, "a"])
        order = [3, 0, 5, 1, 4, 2]
        straight, shuffled = Catalogue.of(items).groups, Catalogue.of(items[order]).groups
        assert_frame_equal(shuffled.drop("item_row"), straight[order].drop("item_row"))

    def test_keep_apart_columns_that_are_called_like_ours(self):
        ours = {name: ["b", "a", "b", "a"] for name in ("category", "text", "item_row", "user_row")}
        catalogue = Catalogue.of(items_of(**ours))
        assert catalogue.groups.columns == [
            *("item_row", "category", "text"),
            *("of_category", "of_text", "of_item_row", "of_user_row"),
        ]
        assert catalogue.groups["of_text"].to_list() == [1, 0, 1, 0]


class TestNumbers:
    def test_are_numeric_and_boolean_columns(self):
        items = items_of(weight=[1, 2, 3, None], new=[True, False, None, True], tags=[["a"], [], [], []], day=["d"] * 4)
        numbers = Catalogue.of(items).numbers
        assert numbers.columns == ["item_row", "item__price", "item__weight", "item__new"]
        assert numbers.dtypes == [pl.Int32, *[pl.Float32] * 3]
        assert numbers["item__weight"].to_list() == [1, 2, 3, None]
        assert numbers["item__new"].to_list() == [1, 0, None, 1]

    def test_keep_apart_a_column_called_row(self):
        assert Catalogue.of(items_of(row=[4, 3, 2, 1])).numbers.columns == ["item_row", "item__price", "item__row"]

    def test_ignored_columns_become_neither_numbers_nor_groups(self):
        items = items_of(weight=[1, 2, 3, 4], brand=["a", "b", "a", "b"])
        catalogue = Catalogue.of(items, ignore_columns=("weight", "brand", "price"))
        assert catalogue.numbers.columns == ["item_row"]
        assert catalogue.groups.columns == ["item_row", "category", "text"]


class TestUserNumbers:
    def test_are_numbers_and_codes_of_text_in_order_of_the_values(self):
        users = pl.DataFrame(
            {
                "user_id": ["u", "v", "w"],
                "age": [30, None, 20],
                "city": ["Rome", "Bonn", None],
                "vip": [True, False, None],
            }
        )
        numbers = user_numbers(users, user_values(users))
        assert numbers is not None
        assert numbers["user_id"].to_list() == ["u", "v", "w"]
        assert numbers["user__age"].to_list() == [30, None, 20]
        assert numbers["user__city"].to_list() == [1, 0, None]
        assert numbers["user__vip"].to_list() == [1, 0, None]
        assert set(numbers.drop("user_id").dtypes) == {pl.Float32}

    def test_keep_the_codes_of_known_values_when_others_come_and_go(self):
        values = {"city": ["Bonn", "Rome"]}
        users = pl.DataFrame({"user_id": [1, 2, 3, 4], "city": ["Aachen", "Rome", None, "Zagreb"]})
        numbers = user_numbers(users, values)
        assert numbers is not None
        assert numbers["user__city"].to_list() == [None, 1, None, None]

    def test_keep_apart_columns_called_row(self):
        for values in ([1, 2], ["a", "b"]):
            users = pl.DataFrame({"user_id": [1, 2], "row": values})
            numbers = user_numbers(users, user_values(users))
            assert numbers is not None
            assert numbers.columns == ["user_id", "user__row"]

    @pytest.mark.parametrize(
        "users", [None, pl.DataFrame({"user_id": ["u"]}), pl.DataFrame({"user_id": ["u", "v"], "city": ["x", "x"]})]
    )
    def test_are_none_where_nothing_is_known(self, users):
        assert user_numbers(users, user_values(users)) is None
