import logging
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys.errors import InvalidConfig, InvalidData
from recsys.schema import normalise_timestamps, read_table, to_caller, validate, validate_histories

DAY = 1_704_067_200  # 2024-01-01 in Unix seconds
UTC_MICROSECONDS = pl.Datetime("us", "UTC")


def interactions(**columns):
    base = {"user_id": ["u1", "u2", "u1"], "item_id": ["a", "b", "b"], "timestamp": [DAY, DAY + 1, DAY + 2]}
    return pl.DataFrame(base | columns)


def items(**columns):
    return pl.DataFrame({"item_id": ["a", "b"], "title": ["Tent", "Stove"]} | columns)


def refused(match, *, given=None, catalogue=None, users=None):
    with pytest.raises(InvalidData, match=match) as caught:
        validate(interactions() if given is None else given, items() if catalogue is None else catalogue, users)
    return caught.value


class TestCanonicalForm:
    def test_interactions(self):
        frame = validate(interactions(), items()).interactions
        assert frame.schema == {
            "user_id": pl.String,
            "item_id": pl.String,
            "timestamp": UTC_MICROSECONDS,
            "event": pl.String,
            "value": pl.Float64,
            "weight": pl.Float64,
        }
        assert frame.row(0) == ("u1", "a", datetime(2024, 1, 1, tzinfo=UTC), "interaction", None, 1.0)

    def test_items(self):
        frame = validate(interactions(), items()).items
        assert frame.schema == {
            "item_id": pl.String,
            "title": pl.String,
            "description": pl.String,
            "categories": pl.List(pl.String),
            "price": pl.Float64,
            "created_at": UTC_MICROSECONDS,
            "available": pl.Boolean,
        }
        assert frame.row(0) == ("a", "Tent", "", [], None, None, True)

    def test_given_columns_are_kept(self):
        given = interactions(event=["view", None, "cart"], value=[1, 2, None], weight=[0.0, 1.0, 2.0])
        frame = validate(given.with_columns(session_id=pl.Series([1, None, 3])), items()).interactions
        assert frame["event"].to_list() == ["view", "interaction", "cart"]
        assert frame["value"].to_list() == [1.0, 2.0, None]
        assert frame["weight"].to_list() == [0.0, 1.0, 2.0]
        assert frame["session_id"].to_list() == [1, None, 3]

    def test_given_item_columns_are_kept(self):
        catalogue = items(
            description=["Dry.", None],
            categories=[["Out", "", None, " Door "], None],
            price=[Decimal("1.50"), None],
            created_at=[date(2024, 1, 1), None],
            available=[0, None],
        )
        frame = validate(interactions(), catalogue).items
        assert frame["description"].to_list() == ["Dry.", ""]
        assert frame["categories"].to_list() == [["Out", "Door"], []]
        assert frame["price"].to_list() == [1.5, None]
        assert frame["created_at"].to_list() == [datetime(2024, 1, 1, tzinfo=UTC), None]
        assert frame["available"].to_list() == [False, True]

    def test_further_item_columns_become_features_of_few_dtypes(self):
        catalogue = items().with_columns(
            small=pl.Series([1, 2], dtype=pl.UInt8),
            huge=pl.Series([1, 2**64 - 1], dtype=pl.UInt64),
            ratio=pl.Series([0.5, float("nan")], dtype=pl.Float32),
            flag=pl.Series([True, False]),
            brand=pl.Series(["x", "y"], dtype=pl.Categorical),
            words=pl.Series([["p"], ["q"]]),
            day=pl.Series([date(2024, 1, 1)] * 2),
        )
        tables = validate(interactions(), catalogue)
        further = tables.items.select(tables.items.columns[7:])
        assert further.schema == {
            "small": pl.Int64,
            "huge": pl.Float64,
            "ratio": pl.Float64,
            "flag": pl.Boolean,
            "brand": pl.String,
        }
        assert further["ratio"].to_list() == [0.5, None]
        assert "items: columns of a dtype that is not used: words (List(String)), day (Date)." in tables.notes

    def test_users(self):
        users = pl.DataFrame({"age": [3, 4], "user_id": ["u9", "u1"]})
        assert validate(interactions(), items(), users).users.rows() == [("u1", 4), ("u9", 3)]
        assert validate(interactions(), items()).users is None

    @pytest.mark.parametrize(
        ("categories", "expected"),
        [
            (["Out", None], [["Out"], []]),
            (["Drama|Comedy | ", ""], [["Drama", "Comedy"], []]),
            ([[], []], [[], []]),
            ([None, None], [[], []]),
        ],
    )
    def test_categories_may_be_strings(self, categories, expected):
        assert validate(interactions(), items(categories=categories)).items["categories"].to_list() == expected

    def test_rows_are_sorted_by_time_then_content(self):
        given = interactions(timestamp=[DAY] * 3)
        assert validate(given, items()).interactions.rows()[0][:2] == ("u1", "a")
        assert validate(given, items().reverse()).items["item_id"].to_list() == ["a", "b"]

    @pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Int64, pl.UInt64])
    def test_integer_ids(self, dtype):
        given = interactions(user_id=[1, 2, 1], item_id=[10, 20, 20]).cast({"item_id": dtype})
        tables = validate(given, items(item_id=[10, 20]))
        assert tables.interactions.schema["item_id"] == tables.items.schema["item_id"] == pl.Int64
        assert sorted(tables.interactions["item_id"]) == [10, 20, 20]

    @pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["u1", "u2"])])
    def test_categorical_ids_become_strings(self, dtype):
        tables = validate(interactions().cast({"user_id": dtype}), items())
        assert tables.interactions.schema["user_id"] == pl.String

    def test_texts_in_any_script_pass_as_they_are(self):
        titles = ["👩‍🚀 無線\x00 سماعات", "x" * 100_000]
        tables = validate(interactions(), items(title=titles))
        assert tables.items["title"].to_list() == titles

    def test_empty_titles_are_counted(self):
        tables = validate(interactions(), items(title=[None, ""]))
        assert tables.items["title"].to_list() == ["", ""]
        assert "items: 2 of 2 have an empty title." in tables.notes


class TestNotes:
    def test_mapped_ignored_and_default_columns_are_noted(self):
        given = interactions(quantity=[1, 2, 3]).rename({"user_id": "userId", "timestamp": "ts"})
        tables = validate(given, items(category=["x", "y"]))
        assert tables.notes == (
            "interactions: column userId is read as user_id.",
            "interactions: column ts is read as timestamp.",
            "interactions: no event column, so every event is 'interaction'.",
            "interactions: columns that are not used: quantity.",
            "items: column category is read as categories.",
            "items: not given, so left at their defaults: description, price, created_at, available.",
        )

    def test_null_events_and_nan_numbers_are_counted(self):
        tables = validate(
            interactions(event=["view", None, None], value=[float("nan"), None, 1.0]),
            items(price=[float("nan"), 2.0]),
        )
        assert "interactions: 2 of 3 events are null and read as 'interaction'." in tables.notes
        assert "interactions: 1 of 3 value are NaN and read as null." in tables.notes
        assert "items: 1 of 2 price are NaN and read as null." in tables.notes
        assert tables.interactions["value"].null_count() == 2

    def test_a_column_without_values_has_no_dtype_yet(self, tmp_path):
        """A CSV file cannot say that an empty column would hold numbers."""
        interactions(value=[None, None, None]).write_csv(tmp_path / "i.csv")
        items(price=[None, None]).write_csv(tmp_path / "items.csv")
        tables = validate(tmp_path / "i.csv", tmp_path / "items.csv")
        assert tables.interactions["value"].dtype == tables.items["price"].dtype == pl.Float64
        assert tables.interactions["value"].null_count() == 3

    def test_times_that_look_missing_are_counted(self):
        said = "interactions: 2 of 3 rows are of 1970-01-01, as a missing time is often written."
        assert said in validate(interactions(timestamp=[0, DAY, 3600]), items()).notes
        for honest in ([0, 1, 2], [DAY, DAY, DAY]):
            assert not any("1970" in note for note in validate(interactions(timestamp=honest), items()).notes)

    def test_times_of_the_future_are_counted(self):
        known = (
            "interactions: 1 of 3 rows lie in the future, the last at 2098-01-01 00:00:00+00:00; ",
            "leave them out.",
        )
        late = int(datetime(2098, 1, 1, tzinfo=UTC).timestamp())
        given, now = interactions(timestamp=[DAY, late, DAY]), datetime(2050, 1, 1, tzinfo=UTC)
        notes = validate(given, items(), now=now).notes
        assert any(note.startswith(known[0]) and note.endswith(known[1]) for note in notes)
        for tables in (validate(given, items()), validate(interactions(), items(), now=now)):
            assert not any("future" in note for note in tables.notes)

    def test_every_note_is_logged_and_drops_are_warnings(self, caplog):
        with caplog.at_level(logging.INFO, logger="recsys"):
            tables = validate(interactions(item_id=["a", "b", "zzz"]), items())
        dropped = "interactions: dropped 1 of 3 rows whose item is not in the items table."
        assert [record.message for record in caplog.records] == list(tables.notes)
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [dropped]


class TestAliases:
    def test_a_canonical_name_wins_over_an_alias(self):
        given = interactions(uid=["x", "y", "z"])
        assert set(validate(given, items()).interactions["user_id"]) == {"u1", "u2"}

    def test_two_aliases_are_refused(self):
        given = interactions().rename({"user_id": "uid"}).with_columns(userId=pl.col("uid"))
        refused(r"interactions\.user_id: several columns could be user_id: userId, uid\. rename", given=given)

    def test_names_are_case_sensitive(self):
        given = interactions().rename({"user_id": "UserId"})
        error = refused(
            r"required column is missing; there are: UserId, item_id, timestamp\. rename one .*household_id",
            given=given,
        )
        assert error.column == "user_id"

    @pytest.mark.parametrize(
        ("catalogue", "users", "table"),
        [
            (items().drop("title"), None, r"items\.title"),
            (items().drop("item_id"), None, r"items\.item_id"),
            (items(), pl.DataFrame({"age": [1]}), r"users\.user_id"),
        ],
    )
    def test_missing_columns_of_the_other_tables(self, catalogue, users, table):
        refused(f"{table}: the required column is missing", catalogue=catalogue, users=users)


class TestRules:
    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"user_id": ["u1", None, "u2"]}, r"interactions\.user_id: an id must not be null\. 1 of 3 rows.*'row': 1"),
            ({"user_id": [None, None, None]}, r"an id must not be null\. 3 of 3 rows"),
            ({"item_id": ["a", "", "b"]}, r"interactions\.item_id: an id must not be empty\. 1 of 3 rows"),
            ({"item_id": ["a", "b" * 257, "b"]}, r"not be longer than 256 characters\. 1 of 3 rows"),
            (
                {"user_id": [1.0, 2.0, 3.0]},
                r"strings or integers, but its dtype is Float64.*missing values into floats",
            ),
            ({"user_id": [True, False, True]}, r"strings or integers, but its dtype is Boolean"),
            ({"session_id": [1.0, None, 3.0]}, r"interactions\.session_id: must hold strings or integers"),
            ({"timestamp": [DAY, None, DAY]}, r"a timestamp must not be null or NaN\. 1 of 3 rows"),
            ({"timestamp": [0.0, float("nan"), 0.5]}, r"a timestamp must not be null or NaN\. 1 of 3 rows"),
            ({"timestamp": [[1], [2], [3]]}, r"must hold datetimes, dates, Unix seconds or ISO 8601 strings"),
            ({"event": [1, 2, 3]}, r"interactions\.event: must hold strings, but its dtype is Int64"),
            ({"value": ["1", "2", "3"]}, r"interactions\.value: must hold numbers, but its dtype is String"),
            ({"value": [1.0, float("inf"), 2.0]}, r"interactions\.value: a number must be finite\. 1 of 3 rows"),
            ({"weight": [1.0, float("-inf"), 2.0]}, r"interactions\.weight: a number must be finite"),
            ({"weight": [1.0, -1.0, 2.0]}, r"weight: a weight must be a finite number of at least 0\. 1 of 3 rows"),
            ({"weight": [1.0, float("nan"), 2.0]}, r"a weight must be a finite number of at least 0"),
            ({"weight": [1, None, 2]}, r"a weight must be a finite number of at least 0"),
        ],
    )
    def test_interactions(self, columns, message):
        refused(message, given=interactions(**columns))

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"item_id": ["a", "a"]}, r"items\.item_id: an id must appear only once\. 2 of 2 rows"),
            ({"title": [1, 2]}, r"items\.title: must hold strings"),
            ({"description": [1, 2]}, r"items\.description: must hold strings"),
            (
                {"categories": [1, 2]},
                r"items\.categories: must hold strings or lists of strings, but its dtype is Int64",
            ),
            ({"categories": [[1], [2]]}, r"strings or lists of strings, but its dtype is List\(Int64\)"),
            ({"price": [1.0, float("inf")]}, r"items\.price: a number must be finite"),
            ({"available": ["yes", "no"]}, r"items\.available: must hold booleans, or the integers 0 and 1"),
            ({"available": [1, 2]}, r"items\.available: must hold booleans"),
            (
                {"created_at": ["yesterday", None]},
                r"items\.created_at: a time given as a string must be ISO 8601.*yester",
            ),
        ],
    )
    def test_items(self, columns, message):
        refused(message, catalogue=items(**columns))

    def test_integers_beyond_64_signed_bits(self):
        given = interactions(user_id=pl.Series([1, 2, 2**64 - 1], dtype=pl.UInt64))
        refused(r"an integer id must fit into 64 signed bits\. 1 of 3 rows", given=given)

    def test_users_must_be_unique(self):
        users = pl.DataFrame({"user_id": ["u1", "u1", "u2"]})
        refused(r"users\.user_id: an id must appear only once\. 2 of 3 rows", users=users)

    @pytest.mark.parametrize("table", ["given", "catalogue", "users"])
    def test_empty_tables(self, table):
        empty = {"given": interactions(), "catalogue": items(), "users": interactions()}[table].clear()
        refused("has no rows", **{table: empty})

    def test_different_id_types_say_which_is_which(self):
        refused(
            r"interactions\.item_id: item_id is String here and Int64 in items.*\(\"item_id\"\)\.cast\(pl\.Int64\)",
            catalogue=items(item_id=[1, 2]),
        )
        refused(r"user_id is String here and Int64 in users", users=pl.DataFrame({"user_id": [1]}))

    def test_nothing_left(self):
        refused(r"no interaction is left after dropping", given=interactions(item_id=["x", "y", "z"]))

    def test_unknown_items_may_be_refused(self):
        given = interactions(item_id=["a", "zzz", "b"])
        with pytest.raises(InvalidData, match=r"the item is not in the items table\. 1 of 3 rows.*'item_id': 'zzz'"):
            validate(given, items(), unknown_items="raise")
        assert validate(interactions(), items(), unknown_items="raise").interactions.height == 3

    def test_unknown_items_is_one_of_two_words(self):
        with pytest.raises(InvalidConfig, match='unknown_items must be "drop" or "raise", not \'keep\''):
            validate(interactions(), items(), unknown_items="keep")

    def test_giant_values_do_not_make_giant_messages(self):
        error = refused("longer than 256", given=interactions(user_id=["u" * 10**6] * 3))
        assert len(str(error)) < 1000


class TestTimestamps:
    NOON = datetime(2024, 5, 31, 12, tzinfo=UTC)

    @pytest.mark.parametrize(
        "values",
        [
            pl.Series([1_717_156_800]),
            pl.Series([1_717_156_800], dtype=pl.UInt32),
            pl.Series([1_717_156_800.0]),
            pl.Series([Decimal(1_717_156_800)]),
            pl.Series([datetime(2024, 5, 31, 12)]),
            pl.Series([datetime(2024, 5, 31, 12)], dtype=pl.Datetime("ns")),
            pl.Series([datetime(2024, 5, 31, 12)], dtype=pl.Datetime("ms")),
            pl.Series([datetime(2024, 5, 31, 14, tzinfo=timezone(timedelta(hours=2)))]),
            pl.Series([datetime(2024, 5, 31, 12)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
            pl.Series(["2024-05-31 12:00"]),
            pl.Series(["2024-05-31T12:00:00"]),
            pl.Series(["2024-05-31 12:00:00.000"]),
            pl.Series(["2024-05-31T12:00:00Z"]),
            pl.Series(["2024-05-31T14:00:00.000+02:00"]),
            pl.Series(["2024-05-31 14:00+0200"]),
            pl.Series([" 2024-05-31T12:00:00+00 "], dtype=pl.Categorical),
        ],
        ids=repr,
    )
    def test_every_form_of_noon(self, values):
        made = normalise_timestamps(values, table="interactions")
        assert made.dtype == UTC_MICROSECONDS
        assert made.to_list() == [self.NOON]

    def test_dates_are_midnight(self):
        midnight = [datetime(2024, 5, 31, tzinfo=UTC)]
        assert normalise_timestamps(pl.Series([date(2024, 5, 31)]), table="items").to_list() == midnight
        assert normalise_timestamps(pl.Series(["2024-05-31"]), table="items").to_list() == midnight

    def test_fractions_of_a_second(self):
        made = normalise_timestamps(pl.Series([DAY + 0.25]), table="interactions")
        assert made.to_list() == [datetime(2024, 1, 1, microsecond=250_000, tzinfo=UTC)]

    def test_nulls_stay(self):
        for values in (pl.Series([None, 1.0]), pl.Series([None, "2024-01-01"]), pl.Series([None, None])):
            assert normalise_timestamps(values, table="items")[0] is None

    @pytest.mark.parametrize("scale", [1000, 1_000_000, float("inf")])
    def test_milliseconds_are_refused(self, scale):
        with pytest.raises(InvalidData, match=r"look like milliseconds\. 1 of 1 row\..*divide them by 1000"):
            normalise_timestamps(pl.Series("timestamp", [DAY * scale]), table="interactions")

    def test_a_wrong_unit_of_a_datetime_is_refused(self):
        nanoseconds_read_as_milliseconds = pl.Series("timestamp", [DAY * 10**9]).cast(pl.Datetime("ms"))
        with pytest.raises(
            InvalidData, match=r"must lie in the years 1 to 9999 \(the numbers shown are ms since 1970\)"
        ):
            normalise_timestamps(nanoseconds_read_as_milliseconds, table="interactions")

    @pytest.mark.parametrize("value", ["31.05.2024", "1717156800", "2024-13-01", ""])
    def test_other_strings_are_refused(self, value):
        with pytest.raises(InvalidData, match=r"must be ISO 8601, such as .*parse the column"):
            normalise_timestamps(pl.Series("timestamp", [value]), table="interactions")

    @pytest.mark.parametrize("values", [[timedelta(1)], [True], [b"2024"]])
    def test_other_dtypes_are_refused(self, values):
        with pytest.raises(InvalidData, match="must hold datetimes, dates, Unix seconds or ISO 8601 strings"):
            normalise_timestamps(pl.Series("timestamp", values), table="interactions")


class TestReading:
    GIVEN = interactions(
        timestamp=[datetime(2024, 1, 1), datetime(2024, 1, 2), datetime(2024, 1, 3, 4, 5, 6)],
        event=["view", "cart", "view"],
        value=[1.5, None, 2.0],
    )
    CATALOGUE = items(title=["Tent 🎪", "火炉, small"], price=[9.5, None], brand=["x", None], categories=["a|b", "c"])

    @pytest.mark.parametrize("ids", [str, int])
    @pytest.mark.parametrize("kind", ["lazy", "pandas", "pandas-object", "pyarrow", "parquet", "folder", "csv"])
    def test_every_source_gives_the_same_tables(self, kind, ids, tmp_path):
        given, catalogue = self.GIVEN, self.CATALOGUE
        if ids is int:
            numbers = {"a": 1, "b": 2, "u1": 3, "u2": 4}
            given = given.with_columns(pl.col("user_id", "item_id").replace_strict(numbers))
            catalogue = catalogue.with_columns(pl.col("item_id").replace_strict(numbers))
        expected = validate(given, catalogue)
        got = validate(as_source(given, kind, tmp_path, "given"), as_source(catalogue, kind, tmp_path, "catalogue"))
        assert_frame_equal(got.interactions, expected.interactions)
        assert_frame_equal(got.items, expected.items)
        assert got.notes == expected.notes

    @pytest.mark.parametrize(
        ("kind", "native"),
        [
            ("eager", pl.DataFrame),
            ("lazy", pl.DataFrame),
            ("pandas", pd.DataFrame),
            ("pyarrow", pa.Table),
            ("parquet", pl.DataFrame),
        ],
    )
    def test_frames_go_back_in_the_library_they_came_in(self, kind, native, tmp_path):
        tables = validate(as_source(self.GIVEN, kind, tmp_path, "given"), self.CATALOGUE)
        returned = to_caller(tables.interactions, tables.implementation)
        assert isinstance(returned, native)
        assert_frame_equal(pl.DataFrame(nw.from_native(returned).to_polars()), tables.interactions)

    def test_ids_go_back_in_the_type_they_came_in(self):
        frame = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [DAY, DAY]})
        tables = validate(frame, items())
        returned = to_caller(tables.interactions, tables.implementation)
        assert returned["user_id"].dtype == np.int64
        assert returned["item_id"].tolist() == ["a", "b"]

    def test_ids_in_csv_keep_their_leading_zeros(self, tmp_path):
        (tmp_path / "items.csv").write_text("item_id,title\n007,Bond\n8,Eight\n")
        assert read_table(tmp_path / "items.csv", "items")["item_id"].to_list() == ["007", "8"]

    def test_a_late_word_in_a_csv_column_is_found(self, tmp_path):
        rows = "".join(f"{row},{row}\n" for row in range(5000))
        (tmp_path / "items.csv").write_text(f"item_id,title\n{rows}5000,word\n")
        assert read_table(tmp_path / "items.csv", "items").schema == {"item_id": pl.Int64, "title": pl.String}

    @pytest.mark.parametrize("source", [5, None, {"a": [1]}, [1, 2], np.zeros((2, 2))])
    def test_what_is_no_table_is_named(self, source):
        message = rf"items: this .*{type(source).__name__} could not be read as a table \(TypeError"
        with pytest.raises(InvalidData, match=message):
            read_table(source, "items")

    def test_a_column_of_several_types_is_refused(self):
        frame = pd.DataFrame({"item_id": pd.Series([1, "2"], dtype=object)})
        with pytest.raises(InvalidData, match="columns have one type"):
            read_table(frame, "items")

    def test_a_lone_surrogate_is_refused(self):
        frame = pd.DataFrame({"title": pd.Series(["\ud800"], dtype=object)})
        with pytest.raises(InvalidData, match=r"surrogates not allowed.*valid Unicode"):
            read_table(frame, "items")

    def test_a_column_that_is_there_twice_is_refused(self):
        with pytest.raises(InvalidData, match="could not be read as a table"):
            read_table(pd.DataFrame([[1, 2]], columns=["item_id", "item_id"]), "items")

    def test_a_missing_path(self, tmp_path):
        with pytest.raises(
            InvalidData, match=r"items: the path .*nothing\.parquet does not exist\. check its spelling"
        ):
            read_table(str(tmp_path / "nothing.parquet"), "items")

    def test_a_folder_without_parquet(self, tmp_path):
        with pytest.raises(InvalidData, match=r"holds no \*\.parquet file"):
            read_table(tmp_path, "items")

    def test_another_kind_of_file(self, tmp_path):
        (tmp_path / "items.xlsx").touch()
        with pytest.raises(InvalidData, match=r"items\.xlsx is neither a \.parquet nor a \.csv file"):
            read_table(tmp_path / "items.xlsx", "items")

    @pytest.mark.parametrize(("name", "content"), [("items.parquet", "no parquet"), ("items.csv", "")])
    def test_broken_files(self, name, content, tmp_path):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidData, match=rf"{name} could not be read as a table"):
            read_table(tmp_path / name, "items")


def as_source(frame, kind, folder, name):
    if kind == "eager":
        return frame
    if kind == "lazy":
        return frame.lazy()
    if kind == "pandas":
        return frame.to_pandas()
    if kind == "pandas-object":
        made = frame.to_pandas()
        strings = [column for column, dtype in frame.schema.items() if dtype == pl.String]
        return made.astype(dict.fromkeys(strings, object)).sample(frac=1.0, random_state=0)
    if kind == "pyarrow":
        return frame.to_arrow()
    if kind == "parquet":
        frame.write_parquet(folder / f"{name}.parquet")
        return folder / f"{name}.parquet"
    if kind == "csv":
        frame.write_csv(folder / f"{name}.csv")
        return str(folder / f"{name}.csv")
    (folder / name).mkdir()
    frame[:1].write_parquet(folder / name / "part-0.parquet")
    frame[1:].write_parquet(folder / name / "part-1.parquet")
    return folder / name


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from(["view", None, "cart"]),
        st.sampled_from([None, 1.0, float("nan")]),
        st.sampled_from([0.5, 1.0]),
    ),
    min_size=1,
    max_size=12,
)


class TestProperties:
    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(rows=EVENTS, data=st.data())
    def test_the_order_of_rows_never_matters(self, rows, data):
        columns = ["user_id", "item_id", "timestamp", "event", "value", "weight"]
        schema = {"event": pl.String, "value": pl.Float64, "weight": pl.Float64}
        frame = pl.DataFrame(rows, schema=columns, orient="row", schema_overrides=schema)
        catalogue = pl.DataFrame({"item_id": [0, 1, 2, 3], "title": ["a", "b", None, "d"]})
        frame = pl.concat([frame, frame[:1].with_columns(item_id=pl.lit(0, dtype=pl.Int64))])
        shuffled = frame[data.draw(st.permutations(range(len(frame))))]
        catalogue_shuffled = catalogue[data.draw(st.permutations(range(4)))]
        first, second = validate(frame, catalogue), validate(shuffled, catalogue_shuffled)
        assert_frame_equal(first.interactions, second.interactions)
        assert_frame_equal(first.items, second.items)
        assert first.notes == second.notes

    @settings(max_examples=25, deadline=None)
    @given(rows=EVENTS)
    def test_validating_twice_changes_nothing(self, rows):
        frame = pl.DataFrame([row[:3] for row in rows], schema=["user_id", "item_id", "timestamp"], orient="row")
        catalogue = pl.DataFrame({"item_id": range(5), "title": list("abcde"), "categories": ["x|y"] * 5})
        once = validate(frame, catalogue)
        twice = validate(once.interactions, once.items)
        assert_frame_equal(once.interactions, twice.interactions)
        assert_frame_equal(once.items, twice.items)
        assert twice.notes == ()


def histories_of(given, catalogue) -> pl.DataFrame:
    return validate_histories(given, catalogue).interactions


class TestHistories:
    CATALOGUE = validate(interactions(), items()).items

    def test_a_mapping_oldest_first(self):
        frame = histories_of({"v": ["b", "a"], "w": ("a",)}, self.CATALOGUE)
        assert frame.columns == ["user_id", "item_id", "timestamp", "event", "value", "weight"]
        assert frame.filter(pl.col("user_id") == "v")["item_id"].to_list() == ["b", "a"]
        assert frame["timestamp"].max() - frame["timestamp"].min() == timedelta(seconds=1)
        assert frame["timestamp"].min() == datetime(1970, 1, 1, tzinfo=UTC)

    def test_integer_ids_and_arrays(self):
        catalogue = validate(interactions(item_id=[1, 2, 2]), items(item_id=[1, 2])).items
        frame = histories_of({7: np.array([2, 1])}, catalogue)
        assert frame.select("user_id", "item_id").rows() == [(7, 2), (7, 1)]

    def test_a_table_with_times(self):
        frame = histories_of(interactions(timestamp=[DAY + 9, DAY, DAY + 1]), self.CATALOGUE)
        assert frame["item_id"].to_list() == ["b", "b", "a"]

    @pytest.mark.parametrize("make", [lambda frame: frame, lambda frame: frame.to_pandas(), lambda frame: frame.lazy()])
    def test_without_times_the_order_of_rows_is_the_order(self, make):
        given = pl.DataFrame({"userId": ["v", "w", "v"], "item_id": ["b", "b", "a"]})
        frame = histories_of(make(given), self.CATALOGUE)
        assert frame["item_id"].to_list() == ["b", "b", "a"]
        assert frame["timestamp"].diff().drop_nulls().to_list() == [timedelta(seconds=1)] * 2

    def test_an_alias_of_timestamp_counts_as_times(self):
        given = interactions(timestamp=[DAY + 9, DAY, DAY + 1]).rename({"timestamp": "ts"})
        assert histories_of(given, self.CATALOGUE)["item_id"].to_list() == ["b", "b", "a"]

    def test_unknown_items_and_emptied_users_are_warned_of(self, caplog):
        with caplog.at_level(logging.WARNING, logger="recsys"):
            frame = histories_of({"v": ["a", "zzz"], "w": ["zzz"], "x": []}, self.CATALOGUE)
        assert frame["user_id"].to_list() == ["v"]
        assert "histories: dropped 2 of 3 rows whose item is not in the items table." in caplog.messages
        assert "histories: 2 of 3 users have no known item." in caplog.messages

    @pytest.mark.parametrize("histories", [{"v": []}, {"v": ["zzz"]}])
    def test_nothing_known_gives_an_empty_table(self, histories):
        frame = histories_of(histories, self.CATALOGUE)
        assert frame.is_empty()
        assert frame.schema["user_id"] == frame.schema["item_id"] == pl.String
        assert frame.schema["timestamp"] == UTC_MICROSECONDS

    @pytest.mark.parametrize(
        ("histories", "message"),
        [
            ({}, "histories: has no users"),
            (interactions().clear(), "histories: has no rows"),
            ({"v": "ab"}, "the history of user 'v' is a str, not a sequence"),
            ({"v": {"a", "b"}}, "the history of user 'v' is a set, not a sequence"),
            ({"v": {"a": 1}}, "the history of user 'v' is a dict, not a sequence"),
            ({"v": 3}, "the history of user 'v' is a int, not a sequence"),
            ({"v": ["a", 1]}, "ids of several types"),
            ({"v": ["a"], 1: ["b"]}, "ids of several types"),
            ({"v": [2**70]}, "an integer id must fit into 64 signed bits"),
            ({"v": [2**200]}, "or of none that is usable"),
            ({"v": [1]}, r"histories\.item_id: item_id is Int64 here and String in items"),
            ({"v": [None]}, r"histories\.item_id: an id must not be null"),
            ({"v": [1.5]}, r"histories\.item_id: must hold strings or integers"),
            ({"": ["a"]}, r"histories\.user_id: an id must not be empty"),
            (interactions().drop("item_id"), r"histories\.item_id: the required column is missing"),
            ({"\ud800": ["a"]}, "or of none that is usable"),
        ],
    )
    def test_bad_histories_are_refused(self, histories, message):
        with pytest.raises(InvalidData, match=message):
            validate_histories(histories, self.CATALOGUE)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["movielens-tiny", "oi-wiki-zh", "lctt-zh", "amazon-beauty", "complete-journey-offers"]
)
def test_real_tables_pass(name, data_folder):
    folder = data_folder / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tables = validate(folder / "interactions.parquet", folder / "items.parquet")
    raw = pl.read_parquet(folder / "interactions.parquet")
    assert tables.interactions.height == raw.height
    assert tables.interactions["timestamp"].dt.epoch("s").sum() == raw["timestamp"].sum()
