"""A split for other programs, and their lists beside ours."""

import json

import polars as pl
import pytest

from recsys.baselines import Popular
from recsys.bench import cli, prepare, read_result, run_bench
from recsys.bench.outside import COLUMNS, read_lists, write_split
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, InvalidData
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items)


@pytest.fixture(scope="module")
def split(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "new" / "split"
    write_split(prepare(data, split="rolling", n_cuts=2, test_share=0.3), folder)
    return folder


@pytest.fixture(scope="module")
def lists(split, tmp_path_factory):
    """What another program made of the split, and of nothing else: the popular items."""
    about = json.loads((split / "split.json").read_text())
    asked, items = pl.read_parquet(split / "asked.parquet"), pl.read_parquet(split / "items.parquet")
    found = []
    for (cut, protocol, hide), group in asked.group_by("cut", "protocol", "filter_seen", maintain_order=True):
        train = pl.read_parquet(split / f"train-{cut}.parquet")
        model = Popular().fit(train, items, as_of=pl.Series([about["cuts"][cut]]).str.to_datetime(time_zone="UTC")[0])
        made = model.recommend(group["user_id"], about["depth"], filter_seen=hide)
        found.append(made.with_columns(cut=pl.lit(cut, dtype=pl.Int32), protocol=pl.lit(protocol)))
    path = tmp_path_factory.mktemp("lists") / "lists.parquet"
    pl.concat(found).with_columns(
        test_hash=pl.lit(about["test_hash"]),
        system=pl.lit("theirs"),
        fit_seconds=pl.lit(2.0),
        ask_seconds=pl.lit(1.0),
        peak_mb=pl.lit(300.0),
    ).write_parquet(path)
    return path


def test_the_split_holds_all_but_the_test(data, split):
    prepared = prepare(data, split="rolling", n_cuts=2, test_share=0.3)
    assert {path.name for path in split.iterdir()} == {
        "split.json", "items.parquet", "asked.parquet", "train-0.parquet", "train-1.parquet",
    }  # fmt: skip
    for cut in prepared.cuts:
        assert pl.read_parquet(split / f"train-{cut.place}.parquet").equals(cut.split.train)
    asked = pl.read_parquet(split / "asked.parquet")
    assert asked.columns == ["cut", "protocol", "filter_seen", "user_id"]
    assert asked.height == sum(len(protocol.users) for cut in prepared.cuts for protocol in cut.protocols)


def test_equal_lists_have_equal_numbers(data, lists, tmp_path):
    result = run_bench(
        data, systems=["popular"], lists=[lists], split="rolling", n_cuts=2, test_share=0.3, n_samples=20,
        out=tmp_path / "results",
    )  # fmt: skip
    for table in result.tables:
        ours, theirs = table.rows
        assert (ours.system, theirs.system) == ("popular", "theirs")
        assert ours.metrics == theirs.metrics
        assert ours.metrics["candidate_recall@100"] == theirs.metrics["candidate_recall@100"]
        assert (theirs.fit_seconds, theirs.peak_mb) == (4.0, 300.0)
    assert read_result(tmp_path / "results").systems == ("popular", "theirs")


def test_others_alone(data, lists):
    result = run_bench(data, systems=[], lists=[lists], split="rolling", n_cuts=2, test_share=0.3, n_samples=20)
    assert result.systems == ("theirs",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_hash": pl.lit("x")}, r"is of another test \(x; this one is "),
        ({"system": pl.lit("popular")}, "holds a system 'popular', which is there already"),
        ({"fit_seconds": pl.int_range(pl.len())}, "fit_seconds, ask_seconds, peak_mb of 'theirs' must be one number"),
        ({"peak_mb": pl.lit(None)}, "must be one number for each cut and protocol"),
        ({"item_id": pl.lit(1)}, "item_id is Int32, in the data it is String"),
        ({"item_id": pl.lit("no such")}, r"x.parquet, lists of theirs\.item_id: must be in the catalogue.*no such"),
        ({"user_id": pl.lit("no such")}, r"x.parquet, lists of theirs\.user_id: must be one that was asked about"),
        ({"rank": pl.lit("first")}, "rank is String, not a number"),
        ({"cut": pl.lit("0")}, "cut is String, not a number"),
        ({"system": pl.lit(None, pl.String)}, "a row without system"),
        ({"protocol": pl.lit("no such")}, "has the protocol 'no such'.*this split has: "),
    ],
)
def test_lists_of_something_else(data, lists, tmp_path, change, message):
    pl.read_parquet(lists).with_columns(**change).write_parquet(tmp_path / "x.parquet")
    prepared = prepare(data, split="rolling", n_cuts=2, test_share=0.3)
    with pytest.raises(InvalidData, match=message):
        read_lists(tmp_path / "x.parquet", prepared, ["popular"])


def test_files_that_are_none(data, lists, tmp_path):
    prepared = prepare(data)
    with pytest.raises(InvalidData, match="cannot be read"):
        read_lists(tmp_path / "nowhere.parquet", prepared)
    pl.read_parquet(lists).drop("score").write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InvalidData, match=f"the column score is missing.*give {', '.join(COLUMNS)}"):
        read_lists(tmp_path / "x.parquet", prepared)
    with pytest.raises(InvalidConfig, match="holds no split; give another folder"):
        write_split(prepared, tmp_path)


def test_commands(data, tiny_bert, lists, tmp_path, capfd):
    data.interactions.write_parquet(tmp_path / "interactions.parquet")
    data.items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "config.toml").write_text(f'device = "cpu"\n[encoder]\nmodel = "{tiny_bert}"\n')
    words = ["--data", str(tmp_path), "--config", str(tmp_path / "config.toml"), "--split", "rolling", "--cuts", "2"]
    words += ["--test-share", "0.3", "--quiet"]
    assert cli.main(["split", *words, "--out", str(tmp_path / "split"), "--json"]) == 0
    about = json.loads(capfd.readouterr().out)
    assert about["test_hash"] == pl.read_parquet(lists)["test_hash"][0]
    assert cli.main(["split", *words, "--out", str(tmp_path / "split")]) == 0
    assert f"test {about['test_hash']}" in capfd.readouterr().out
    assert cli.main(["run", *words, "--systems", "popular", "--lists", str(lists), "--samples", "5", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["systems"] == ["popular", "theirs"]
    assert cli.main(["run", *words, "--systems", "", "--lists", str(lists), "--samples", "5", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["systems"] == ["theirs"]
