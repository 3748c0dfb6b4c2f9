"""Verdicts: Holm's correction, two results of one test, and the gate."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.bench import compare, gate, run_bench
from recsys.bench.comparison import differences, holm, render_comparison, verdict
from recsys.bench.result import Estimate, Flag, ResultFolder, as_json
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, InvalidData
from recsys.metrics import bootstrap_means
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=80, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items)


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """One test, twice: "best" is popularity in the first and item-kNN in the second."""
    root = tmp_path_factory.mktemp("results")
    run_bench(data, systems={"best": "popular", "same": "popular"}, n_samples=50, out=root / "old")
    run_bench(data, systems={"best": "item-knn", "same": "popular"}, n_samples=50, out=root / "new")
    run_bench(data, systems={"best": "popular"}, n_samples=50, test_share=0.2, out=root / "other")
    return root


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_verdicts():
    found = [(0.1, 0.01), (-0.1, 0.01), (0.1, 0.05), (0.0, 0.0), (float("nan"), float("nan"))]
    said = [verdict(difference, p, "ndcg@10") for difference, p in found]
    assert said == ["better", "worse", "undecided", "undecided", "undecided"]
    assert [verdict(d, p, "popularity_lift@10") for d, p in found[:3]] == ["higher", "lower", "undecided"]


@pytest.mark.parametrize(("n_people", "said"), [(1, "undecided"), (4, "undecided"), (40, "better")])
def test_a_few_people_decide_nothing(n_people, said):
    rng = np.random.default_rng(0)
    values = np.stack([0.5 + 0.1 * rng.random(n_people), 0.1 * rng.random(n_people)], axis=1)
    means = bootstrap_means(values, seed=0)
    named = {name: (values[:, column], means[:, column]) for column, name in enumerate("ab")}
    (found,) = differences(named, [("a", "b")], "ndcg@10", n_people=n_people)
    assert found.difference > 0.3
    assert found.verdict == said


def test_of_a_metric_that_says_nothing_of_some_the_same_people_are_compared(folders, tmp_path):
    """Of the first half only A knows something, of the last quarter only B."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("result.json", "per_user.parquet"):
            (tmp_path / name / file).write_bytes((folders / "old" / file).read_bytes())
    rows = pl.read_parquet(folders / "old" / "per_user.parquet")
    place, n = pl.int_range(pl.len()).over("system"), pl.len().over("system")
    rows.with_columns(
        pl.when(place < 0.75 * n).then(pl.when(place < n // 2).then(5.0).otherwise(place % 7)).alias("ild@10")
    ).write_parquet(tmp_path / "a" / "per_user.parquet")
    rows.with_columns(
        pl.when(place >= n // 2).then(pl.when(place < 0.75 * n).then(place % 7 + 1.0).otherwise(9.0)).alias("ild@10")
    ).write_parquet(tmp_path / "b" / "per_user.parquet")
    for part in compare(tmp_path / "a", tmp_path / "b", metrics_of=["ild@10"])["tables"]["new items only"]:
        assert part["difference"] == pytest.approx(1.0)
        assert part["low"] == pytest.approx(1.0)
        assert part["high"] == pytest.approx(1.0)
    rows.with_columns(pl.lit(None, dtype=pl.Float64).alias("ild@10")).write_parquet(tmp_path / "b" / "per_user.parquet")
    with pytest.raises(InvalidConfig, match="have no value of ild@10 for the same people"):
        compare(tmp_path / "a", tmp_path / "b", metrics_of=["ild@10"])


def test_many_comparisons_of_nothing_find_nothing():
    rng = np.random.default_rng(0)
    values = rng.random((300, 20))
    means = bootstrap_means(values, seed=0)
    named = {f"s{column}": (values[:, column], means[:, column]) for column in range(20)}
    pairs = [(f"s{a}", f"s{b}") for a in range(20) for b in range(a)]
    found = differences(named, pairs, "ndcg@10", n_people=300)
    assert sum(part.p < 0.05 for part in found) > 0
    assert {part.verdict for part in found} == {"undecided"}


def test_the_newer_minus_the_older(folders):
    found = compare(folders / "old", folders / "new")
    rows = {(row["system"], row["metric"]): row for row in found["tables"]["new items only"]}
    assert found["n_comparisons"] == 4
    assert rows["best", "ndcg@10"]["verdict"] == "better"
    assert rows["best", "ndcg@10"]["low"] > 0
    same = rows["same", "recall@10"]
    assert (same["difference"], same["p"], same["verdict"]) == (0, 1, "undecided")
    back = compare(folders / "new", folders / "old", metrics_of=["mrr@10"], systems=("best", "same"))
    (row,) = back["tables"]["new items only"]
    assert (row["system"], row["other"], row["verdict"]) == ("same", "best", "worse")
    assert "same - best  mrr@10" in render_comparison(back)


def test_what_cannot_be_compared(folders, tmp_path):
    with pytest.raises(InvalidData, match=r"had different tests \(hashes \w{16} and \w{16}\)"):
        compare(folders / "old", folders / "other")
    with pytest.raises(InvalidConfig, match=r"both results must have err@10; there are ndcg@5, "):
        compare(folders / "old", folders / "new", metrics_of=["err@10"])
    with pytest.raises(
        InvalidConfig, match=r"nothing to compare under the same protocol: .*old has best, same; .*new has"
    ):
        compare(folders / "old", folders / "new", systems=("best", "nobody"))
    with pytest.raises(InvalidConfig, match="n_samples=0 must be at least 1"):
        compare(folders / "old", folders / "new", n_samples=0)
    with pytest.raises(InvalidData, match="is no result"):
        compare(tmp_path, folders / "new")
    for text, message in (("[]", "is no result"), ('"x"', "is no result")):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(InvalidData, match=message):
            compare(tmp_path, folders / "new")
    damaged = json.loads((folders / "new" / "result.json").read_text())
    del damaged["tables"][0]["rows"]
    (tmp_path / "result.json").write_text(json.dumps(damaged))
    with pytest.raises(InvalidData, match=r"is a damaged result \(KeyError\('rows'\)\)"):
        compare(tmp_path, folders / "new")
    (tmp_path / "result.json").write_text('{"format": 1}')
    with pytest.raises(InvalidData, match="the format is 1, this version reads 3"):
        compare(tmp_path, folders / "new")
    (tmp_path / "result.json").write_text((folders / "new" / "result.json").read_text())
    with pytest.raises(InvalidData, match=r"per_user.parquet: does not exist"):
        compare(tmp_path, folders / "new")
    (tmp_path / "per_user.parquet").write_bytes(b"half a file")
    with pytest.raises(InvalidData, match=r"per_user.parquet: is damaged"):
        compare(tmp_path, folders / "new")
    per_user = pl.read_parquet(folders / "new" / "per_user.parquet")
    per_user.filter(pl.col("user_id") != per_user["user_id"][0]).write_parquet(tmp_path / "per_user.parquet")
    with pytest.raises(InvalidData, match="'new items only' has other users"):
        compare(tmp_path, folders / "new")


class TestGate:
    def test_a_regression_is_refused_and_equality_passes(self, folders):
        worse = gate(folders / "old", folders / "new", system="best")
        assert (worse["verdict"], worse["paired"]) == ("regression", True)
        assert "user by user" in worse["checks"][0]["message"]
        assert gate(folders / "new", folders / "new", system="best")["verdict"] == "passed"

    def test_a_jump_is_too_good_to_be_true(self, folders):
        found = gate(folders / "new", folders / "old", system="best")
        assert found["verdict"] == "too good to be true"
        assert "look for a leak" in found["checks"][0]["message"]
        assert gate(folders / "new", folders / "old", system="best", jump=1000)["verdict"] == "passed"

    def test_numbers_alone_are_compared_by_their_means(self, folders, tmp_path):
        baseline = tmp_path / "baseline.json"
        result = ResultFolder(folders / "new").result
        baseline.write_text(as_json(result.to_dict()))
        assert gate(folders / "new", baseline, system="best")["paired"] is False
        assert gate(folders / "old", baseline, system="best")["verdict"] == "regression"
        (table,) = result.tables
        lower = replace(table.rows[0], metrics={"ndcg@10": Estimate(mean=table.rows[0].metrics["ndcg@10"].mean * 0.97)})
        baseline.with_name("new.json").write_text(
            as_json(replace(result, tables=(replace(table, rows=(lower,)),)).to_dict())
        )
        assert gate(tmp_path / "new.json", baseline, system="best", tolerance=0.02)["verdict"] == "regression"
        assert gate(tmp_path / "new.json", baseline, system="best", tolerance=0.05)["verdict"] == "passed"

    def changed(self, folders, path, *, test_hash=None, n_users=80, protocol="new items only", **metric):
        """The newer result with other numbers, as JSON."""
        result = ResultFolder(folders / "new").result
        (table,) = result.tables
        row = replace(table.rows[0], metrics={"ndcg@10": Estimate(**metric)})
        table = replace(table, protocol=protocol, n_users=n_users, rows=(row,))
        result = replace(result, test_hash=test_hash or result.test_hash, tables=(table,))
        path.write_text(as_json(result.to_dict()))
        return path

    def test_of_two_tests_the_intervals_must_lie_apart(self, folders, tmp_path):
        old = self.changed(folders, tmp_path / "old.json", mean=0.20, low=0.18, high=0.22)
        for high, said in ((0.19, "passed"), (0.17, "regression")):
            new = self.changed(folders, tmp_path / "new.json", test_hash="0" * 16, mean=0.15, low=0.13, high=high)
            found = gate(new, old, system="best")
            assert (found["verdict"], found["same_test"]) == (said, False)
            assert "(another test)" in found["checks"][0]["message"]

    def test_few_users_are_named_and_not_judged(self, folders, tmp_path):
        old = self.changed(folders, tmp_path / "old.json", mean=0.2, low=0.1, high=0.3, n_users=7)
        for mean in (0.1, 0.9):
            new = self.changed(folders, tmp_path / "new.json", mean=mean, low=0.0, high=1.0, n_users=7)
            found = gate(new, old, system="best")
            assert found["verdict"] == "passed"
            assert "7 users are too few to judge" in found["checks"][0]["message"]

    def test_nothing_is_too_good_beside_nothing(self, folders, tmp_path):
        old = self.changed(folders, tmp_path / "old.json", mean=0.0, low=0.0, high=0.0)
        assert gate(folders / "new", old, system="best")["verdict"] == "passed"

    def test_a_protocol_that_is_gone_is_a_regression(self, folders, tmp_path):
        both = ResultFolder(folders / "new").result
        more = replace(both.tables[0], protocol="repeats counted")
        path = tmp_path / "both.json"
        path.write_text(as_json(replace(both, tables=(*both.tables, more)).to_dict()))
        found = gate(folders / "new", path, system="best")
        assert found["verdict"] == "regression"
        assert "repeats counted: the baseline has it, the result does not" in [
            one["message"] for one in found["checks"]
        ]

    def test_a_flag_that_the_baseline_lacks(self, folders, tmp_path):
        result = ResultFolder(folders / "new").result
        flagged = replace(result, flags=(Flag(kind="leak", what="votes", message="It knows."),))
        (tmp_path / "flagged.json").write_text(json.dumps(flagged.to_dict()))
        assert gate(tmp_path / "flagged.json", folders / "new", system="best")["verdict"] == "leak"
        assert gate(tmp_path / "flagged.json", tmp_path / "flagged.json", system="best")["verdict"] == "passed"

    def test_what_cannot_be_gated(self, folders):
        with pytest.raises(InvalidConfig, match="share no protocol with ndcg@10 of 'nobody'"):
            gate(folders / "new", folders / "old", system="nobody")
        with pytest.raises(InvalidConfig, match=r"tolerance=-1 must be 0 or more and jump=2.0 above 1"):
            gate(folders / "new", folders / "old", tolerance=-1)
