import pytest

from recsys import errors
from recsys.errors import InvalidData, RecsysError, UnknownUsers


def test_invalid_data_says_what_where_how_many_and_what_to_do():
    error = InvalidData(
        table="items",
        column="price",
        rule="a number must be finite",
        count=2,
        total=1000,
        rows=[{"row": 3}, {"row": 9}],
        remedy="drop these rows",
    )
    expected = "items.price: a number must be finite. 2 of 1,000 rows. first: {'row': 3}; {'row': 9}. drop these rows."
    assert str(error) == expected


def test_invalid_data_leaves_out_what_it_was_not_told():
    error = InvalidData(table="items", rule="has no rows", remedy="check where it comes from")
    assert str(error) == "items: has no rows. check where it comes from."
    assert (error.column, error.count, error.total, error.rows) == (None, None, None, ())


@pytest.mark.parametrize(
    ("count", "total", "words"),
    [(1, None, "1 row."), (2, None, "2 rows."), (1, 1, "1 of 1 row."), (1, 2, "1 of 2 rows.")],
)
def test_invalid_data_counts_in_english(count, total, words):
    assert words in str(InvalidData(table="items", rule="r", remedy="m", count=count, total=total))


def test_invalid_data_keeps_its_arguments_and_the_first_five_rows():
    error = InvalidData(table="users", column="user_id", rule="r", count=9, rows=range(9), remedy="m")
    assert (error.table, error.column, error.rule, error.count, error.remedy) == ("users", "user_id", "r", 9, "m")
    assert error.rows == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("row", ["x" * 1_000_000, {"title": "x" * 1_000_000}])
def test_a_message_cuts_what_it_shows(row):
    assert len(str(InvalidData(table="items", rule="r", remedy="m", rows=[row] * 5))) < 500


def test_unknown_users_counts_and_shows_five():
    error = UnknownUsers([f"u{user}" for user in range(7)])
    assert error.count == 7
    assert error.users == ("u0", "u1", "u2", "u3", "u4")
    assert "7 users were not in the interactions at fit: 'u0', 'u1', 'u2', 'u3', 'u4', ..." in str(error)
    assert "recommend_for" in str(error)


def test_one_unknown_user():
    assert "1 user was not in the interactions at fit: 42." in str(UnknownUsers([42]))


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("InvalidData", (RecsysError, ValueError)),
        ("InvalidConfig", (RecsysError, ValueError)),
        ("NotFitted", (RecsysError, RuntimeError)),
        ("UnknownUsers", (RecsysError, LookupError)),
        ("DeviceUnavailable", (RecsysError, RuntimeError)),
        ("BundleError", (RecsysError,)),
        ("BundleNotFound", (errors.BundleError,)),
        ("BundleCorrupt", (errors.BundleError,)),
        ("BundleIncompatible", (errors.BundleError,)),
        ("BundleLocked", (errors.BundleError,)),
        ("PublishRefused", (errors.BundleError,)),
    ],
)
def test_the_tree(name, parents):
    assert getattr(errors, name).__bases__ == parents
