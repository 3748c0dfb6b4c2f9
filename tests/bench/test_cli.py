"""The command `recsys-bench`: results on stdout, progress on stderr, exit codes."""

import json

import polars as pl
import pytest

from indexing.retriever import SOURCES
from recsys.bench.cli import SYSTEMS, main
from recsys.bench.scenario import read_scenario
from recsys.errors import InvalidConfig
from recsys.synthetic import generate


@pytest.fixture(scope="module")
def folder(tiny_bert, tmp_path_factory):
    """Tables and a scenario; the encoder is there, though no system here needs it."""
    folder = tmp_path_factory.mktemp("data")
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    made.interactions.write_parquet(folder / "interactions.parquet")
    made.items.write_parquet(folder / "items.parquet")
    made.users.write_csv(folder / "users.csv")
    (folder / "scenario.toml").write_text(
        'data = "$BENCH_DATA"\nsplit = "rolling"\nn_cuts = 2\ntest_share = 0.2\nsystems = ["popular", "item-knn"]\n'
        f'n_samples = 20\nignore_columns = ["price"]\n[config.encoder]\nmodel = "{tiny_bert}"\n'
    )
    (folder / "config.toml").write_text(f'device = "cpu"\n[encoder]\nmodel = "{tiny_bert}"\n')
    return folder


@pytest.fixture(scope="module")
def arguments(folder):
    return ["--data", str(folder), "--config", str(folder / "config.toml")]


@pytest.fixture(scope="module")
def results(folder, arguments):
    for name, system in (("a", "popular"), ("b", "popular,item-knn")):
        assert (
            main(["run", *arguments, "--systems", system, "--samples", "20", "--quiet", "--out", str(folder / name)])
            == 0
        )
    return folder


def test_the_help_names_every_source():
    named = SYSTEMS.replace(",", " ").split()
    assert [name for name in SOURCES if name not in named] == []


def test_tables_on_stdout_and_a_folder(folder, arguments, tmp_path, capfd):
    out = tmp_path / "new" / "results"
    words = ["--systems", "popular, tfidf", "--k", "5", "--ks", "1,20", "--samples", "20", "--seed", "1"]
    assert main(["run", *arguments, *words, "--out", str(out), "--ignore-columns", "price,created_at"]) == 0
    printed, err = capfd.readouterr()
    assert "new items only: " in printed
    assert "ndcg@5" in printed
    assert "%|" in err
    result = json.loads((out / "result.json").read_text())
    assert result["config"]["ignore_columns"] == ["price", "created_at"]
    assert (result["seed"], result["split"], result["ks"]) == (1, "time", [1, 5, 20])
    assert result["test_hash"] in printed
    assert {path.name for path in out.iterdir()} == {
        "result.json", "per_user.parquet", "lists.parquet", "candidates.parquet", "truth.parquet",
    }  # fmt: skip


def test_json_is_all_there_is_on_stdout(folder, capfd, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(folder))
    assert main(["run", "--scenario", str(folder / "scenario.toml"), "--json", "--quiet", "--test-share", "0.1"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["split"], len(result["cuts"]), result["settings"]["test_share"]) == ("rolling", 2, 0.1)
    assert result["systems"] == ["popular", "item-knn"]
    assert result["config"]["ignore_columns"] == ["price"]


def test_a_leak_is_three(folder, tmp_path, arguments, capfd):
    interactions = pl.read_parquet(folder / "interactions.parquet")
    counts = interactions.sort("timestamp").tail(72).group_by("item_id").agg(votes=pl.len())
    interactions.write_parquet(tmp_path / "interactions.parquet")
    items = pl.read_parquet(folder / "items.parquet").join(counts, on="item_id", how="left").fill_null(0)
    items.write_parquet(tmp_path / "items.parquet")
    words = ["run", "--data", str(tmp_path), *arguments[2:], "--systems", "popular", "--samples", "20", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "results")]) == 3
    assert "leak: The item column 'votes' knows the test" in capfd.readouterr().err
    assert (tmp_path / "results" / "result.json").is_file()
    assert main([*words, "--ignore-columns", "votes"]) == 0


def test_compare_and_gate(results, capfd):
    a, b = str(results / "a"), str(results / "b")
    assert main(["compare", a, b, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["n_comparisons"] == 2
    assert main(["compare", a, b, "--systems", "popular,item-knn", "--metrics", "mrr@10"]) == 0
    assert "item-knn - popular  mrr@10" in capfd.readouterr().out
    assert main(["compare", a, b, "--systems", "popular"]) == 2
    assert main(["gate", b, "--against", a, "--system", "popular"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "passed"
    assert main(["gate", b, "--against", a, "--system", "item-knn"]) == 2
    assert main(["gate", b, "--against", str(results / "b" / "result.json"), "--system", "item-knn", "--json"]) == 0
    assert main(["compare", a, str(results)]) == 65


def test_gate_refuses_a_regression(results, tmp_path, capfd):
    result = json.loads((results / "b" / "result.json").read_text())
    result["tables"][0]["rows"][0]["metrics"]["ndcg@10"]["mean"] += 0.5
    (tmp_path / "baseline.json").write_text(json.dumps(result))
    assert main(["gate", str(results / "b"), "--against", str(tmp_path / "baseline.json"), "--system", "popular"]) == 3
    assert capfd.readouterr().out.splitlines()[-1] == "regression"


def test_profile(arguments, tmp_path, capfd):
    out = tmp_path / "new" / "profile.json"
    words = ["profile", *arguments, "--systems", "popular", "--quiet", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(out.read_text())
    (row,) = json.loads(out.read_text())["rows"]
    assert row["milliseconds_per_user"] == pytest.approx(1000 / row["users_per_second"])
    assert main(words) == 0
    assert "ms/user" in capfd.readouterr().out


def test_wrong_arguments(folder, arguments, tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert main(["run", *arguments, "--out", str(tmp_path / "mine")]) == 3
    assert "exists and holds no results" in capfd.readouterr().err
    assert main(["run", *arguments, "--out", str(tmp_path / "mine" / "thesis.txt" / "results")]) == 74
    assert "File exists" in capfd.readouterr().err
    assert main(["run", *arguments, "--ks", "ten"]) == 2
    assert "--ks ten must be whole numbers" in capfd.readouterr().err
    assert main(["run"]) == 2
    assert "give --data" in capfd.readouterr().err
    assert main(["run", "--scenario", str(folder / "scenario.toml"), *arguments[2:]]) == 2
    assert "names a variable of the environment that is not set" in capfd.readouterr().err
    assert main(["run", *arguments, "--systems", "best"]) == 2
    assert "system 'best' is unknown" in capfd.readouterr().err


def test_settings_stand_in_one_place(folder, arguments, capfd, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(folder))
    assert main(["run", "--scenario", str(folder / "scenario.toml"), *arguments[2:]]) == 2
    assert "in the scenario's [config] or with --config, not both" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dta = 1", "unknown key dta; did you mean data?"),
        ("zzz = 1", "unknown key zzz; known keys: data, "),
        ("k = true", "k must be int, got True"),
        ('systems = "popular"', "systems must be list, got 'popular'"),
        ('systems = ["popular", 1]', "systems must hold str values, got 1"),
        ("ks = [10, true]", "ks must hold int values, got True"),
        ("k = ", "cannot be read"),
    ],
)
def test_scenarios_that_are_none(tmp_path, text, message):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(InvalidConfig) as refused:
        read_scenario(tmp_path / "x.toml")
    assert message in str(refused.value)
