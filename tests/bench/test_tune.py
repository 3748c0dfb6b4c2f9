"""The search: it never sees the test, it goes on where it stopped, and what it writes can be used."""

import json
import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from recsys import pipeline
from recsys.bench import cli, prepare, tune_page
from recsys.bench import tune as module
from recsys.bench.sharing import SharedFits
from recsys.bench.space import Range, read_space, space_from_dict, with_values
from recsys.bench.tune import score, tune, validation
from recsys.config import RecommenderConfig, read_config, to_toml
from recsys.datasets import Dataset
from recsys.errors import InvalidConfig, PublishRefused
from recsys.synthetic import generate

pytest.importorskip("optuna")
SPACE = {"retriever.history_power": {"low": 0.1, "high": 0.9}, "ranker.n_leaves": {"low": 4, "high": 64, "log": True},
         "renew_towers": [True, False]}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return Dataset(name="synthetic", interactions=made.interactions, items=made.items)


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=2, tower_max_steps=3),
        n_interest=0,
        probabilities=False,
        device="cpu",
        seed=5,
    )


@pytest.fixture
def formula(monkeypatch):
    """Scores by a formula with its best at a power of 0.5, in place of fits; what was asked is kept."""
    asked = []

    def score(prepared, system, fits):
        asked.append(prepared.config)
        power, leaves = prepared.config.retriever.history_power, prepared.config.ranker.n_leaves
        if leaves > 50:
            raise InvalidConfig("too many leaves")
        return 1 - abs(power - 0.5) - 0.01 * math.log(leaves)

    monkeypatch.setattr(module, "score", score)
    return asked


@pytest.mark.parametrize("kind", ["time", "rolling", "leave-last-out", "random"])
def test_validation_holds_no_row_of_the_test(data, kind):
    whole = prepare(data, RecommenderConfig(), split=kind)
    inner, test_hash = validation(data, RecommenderConfig(), split=kind)
    rows = pl.concat([inner.split.train, *(cut.split.test for cut in inner.cuts)])
    for cut in whole.cuts:
        assert rows.join(cut.split.test, on=rows.columns, how="semi", nulls_equal=True).is_empty()
    assert test_hash == whole.split.test_hash
    assert inner.split.test.height > 0
    assert [len(cut.protocols) for cut in inner.cuts] == [1] * len(inner.cuts)


def test_other_test_rows_change_no_trial(data, config, tmp_path, monkeypatch):
    fits, fit = [], SharedFits.fit

    def spy(self, interactions, *given):
        fits.append(interactions["timestamp"].max())
        return fit(self, interactions, *given)

    monkeypatch.setattr(SharedFits, "fit", spy)
    as_of = prepare(data, config).split.as_of
    known = data.interactions.filter(pl.col("timestamp") < as_of)
    test = data.interactions.filter(pl.col("timestamp") >= as_of)
    poison = test.with_columns(item_id=pl.col("item_id").reverse(), user_id=pl.col("user_id").sort())
    space = space_from_dict({"retriever.history_power": SPACE["retriever.history_power"]})
    found = [
        tune(Dataset(name="one", interactions=rows, items=data.items), space, config, out=tmp_path / name, n_trials=2)
        for name, rows in (("a", data.interactions), ("b", pl.concat([known, poison])))
    ]
    assert found[0].test_hash != found[1].test_hash
    assert found[0].validation_hash == found[1].validation_hash
    scores = [[trial.score for trial in one.trials] for one in found]
    assert scores[0] == scores[1]
    assert 0 < max(scores[0]) < 1
    assert len(fits) == 4
    assert max(fits) < as_of
    assert found[0].trials[0].given
    assert found[0].trials[0].values == {"retriever.history_power": config.retriever.history_power}


def test_a_search_that_was_stopped_finds_what_it_would_have_found(data, config, tmp_path, formula, monkeypatch):
    space = space_from_dict(SPACE)
    straight = tune(data, space, config, out=tmp_path / "straight", n_trials=14)
    out = tmp_path / "stopped"
    assert len(tune(data, space, config, out=out, n_trials=3).trials) == 3
    ask = module.score

    def interrupted(prepared, system, fits):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(data, space, config, out=out, n_trials=14)
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == 3
    monkeypatch.setattr(module, "score", ask)
    resumed = tune(data, space, config, out=out, n_trials=14)
    assert [(t.number, t.values, t.score) for t in resumed.trials] == [
        (t.number, t.values, t.score) for t in straight.trials
    ]
    n = len(formula)
    assert len(tune(data, space, config, out=out, n_trials=14).trials) == 14
    assert len(formula) == n
    refused = [trial for trial in resumed.trials if trial.refused]
    assert all(trial.score is None and trial.values["ranker.n_leaves"] > 50 for trial in refused)


def test_trials_share_stage_1_where_they_do_not_change_it(data, config, tmp_path, monkeypatch):
    learnt = []
    learn = pipeline.learn_first_stage
    monkeypatch.setattr(pipeline, "learn_first_stage", lambda *given: learnt.append(1) or learn(*given))
    space = space_from_dict({"retriever.history_power": {"low": 0.1, "high": 0.9}})
    found = tune(data, space, config, out=tmp_path / "new" / "x", n_trials=2)
    assert (len(found.trials), len(learnt)) == (2, 1)
    prepared = validation(data, config, k=10, ks=(10,))[0]
    second = replace(prepared, config=with_values(prepared.config, found.trials[1].values))
    assert score(second, "two-stage") == found.trials[1].score


def test_a_killed_search_goes_on(data, config, tmp_path, formula, monkeypatch):
    space = space_from_dict(SPACE)
    tell = module._next

    def killed(study, *arguments):
        study.ask()
        raise SystemExit

    monkeypatch.setattr(module, "_next", killed)
    with pytest.raises(SystemExit):
        tune(data, space, config, out=tmp_path / "x", n_trials=2)
    monkeypatch.setattr(module, "_next", tell)
    assert [trial.number for trial in tune(data, space, config, out=tmp_path / "x", n_trials=2).trials] == [0, 1]


def test_the_best_settings_are_a_file_for_config(data, config, tmp_path, formula):
    found = tune(data, space_from_dict(SPACE), config, out=tmp_path / "x", n_trials=6)
    best = max((trial for trial in found.trials if trial.score is not None), key=lambda trial: trial.score)
    assert found.best == best
    read = read_config(tmp_path / "x" / "best.toml")
    assert read == with_values(config, best.values)
    assert (read.encoder.model, read.seed) == (config.encoder.model, 5)
    page = (tmp_path / "x" / "trials.html").read_text(encoding="utf-8")
    assert f"{best.score:.4f}" in page
    assert "best so far" in page
    assert "retriever.history_power" in page
    assert not any(word in page for word in ("<script", "http://", "https://", "src=", "href=", "url("))
    assert not list((tmp_path / "x").glob("*.pkl"))


def test_no_trial_begins_after_the_time(data, config, tmp_path, formula):
    found = tune(data, space_from_dict(SPACE), config, out=tmp_path / "x", n_trials=5, timeout=1e-9)
    assert found.trials == ()
    assert (found.best, found.config.seed) == (None, 5)
    assert read_config(tmp_path / "x" / "best.toml").contrastive == config.contrastive
    assert "0 trials" in tune_page.tune_headline(found)


def test_given_settings_outside_the_space_are_no_trial(data, config, tmp_path, formula):
    space = space_from_dict({"retriever.history_power": {"low": 0.1, "high": 0.2}})
    found = tune(data, space, config, out=tmp_path / "x", n_trials=2)
    assert not any(trial.given for trial in found.trials)
    assert all(0.1 <= trial.values["retriever.history_power"] <= 0.2 for trial in found.trials)


def test_a_folder_holds_one_search(data, config, tmp_path, formula):
    space = space_from_dict(SPACE)
    tune(data, space, config, out=tmp_path / "x", n_trials=1)
    other = space_from_dict({"n_interest": [0, 5]})
    with pytest.raises(InvalidConfig, match="x holds a search with other space; give another folder"):
        tune(data, other, config, out=tmp_path / "x", n_trials=2)
    with pytest.raises(InvalidConfig, match="with other data, system;"):
        tune(data, space, config, out=tmp_path / "x", system="two-stage: retrieval", split="leave-last-out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(PublishRefused, match="exists and holds no trials"):
        tune(data, space, config, out=tmp_path / "mine")


def test_what_cannot_be_searched(data, config, tmp_path, monkeypatch):
    space = space_from_dict(SPACE)
    with pytest.raises(InvalidConfig, match="system 'popular' has no settings to search"):
        tune(data, space, config, out=tmp_path / "x", system="popular")
    with pytest.raises(InvalidConfig, match="n_trials is 0 and timeout None"):
        tune(data, space, config, out=tmp_path / "x", n_trials=0)
    monkeypatch.setattr(module, "ask", lambda prepared, systems, fits: ([], ()))
    found = tune(data, space, config, out=tmp_path / "y", n_trials=1)
    assert found.trials[0].refused == "two-stage has no lists with these settings"
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InvalidConfig, match=r'needs the package optuna, .*"recsys-twostage\[tune\]"'):
        tune(data, space, config, out=tmp_path / "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the space is empty"),
        ({"ranker.n_leafs": [4]}, r"space: unknown key ranker\.n_leafs; did you mean ranker\.n_leaves\?"),
        ({"seed.x": [4]}, r"space: unknown key seed\.x: seed is no table"),
        ({"ranker": {"n_leaves": {"low": 4.0, "high": 8.0}}}, r"space: ranker\.n_leaves must be int, got 4\.0"),
        ({"n_interest": {"low": -1, "high": 8}}, "space: .*n_interest=-1 must be 0 or more"),
        ({"n_interest": []}, r"space: n_interest must list numbers, texts or true and false, got \[\]"),
        ({"n_interest": 4}, "space: n_interest must be a list of choices, or have low, high"),
        ({"n_interest": {"low": 1, "hihg": 2}}, "space: n_interest must be a list of choices"),
        ({"n_interest": {"low": "1", "high": 2}}, "space: n_interest must have numbers"),
        ({"n_interest": {"low": 3, "high": 2}}, "space: n_interest must have low up to high"),
        ({"n_interest": {"low": 0, "high": 2, "log": True}}, "above 0 with log"),
        ({"n_interest": {"low": 1, "high": 2, "log": True, "step": 1}}, "has log and step; take one"),
        ({"n_interest": {"low": 1, "high": 2, "step": 0.5}}, r"whole ends, so step must be whole, got 0\.5"),
    ],
)
def test_spaces_that_are_none(values, message):
    with pytest.raises(InvalidConfig, match=message):
        space_from_dict(values)


def test_spaces_from_files(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text('[space]\nranker.n_leaves = { low = 4, high = 64, step = 4 }\n"ease.regularization" = [1.0, 2.0]\n')
    assert read_space(path) == {"ranker.n_leaves": Range(low=4, high=64, step=4), "ease.regularization": (1.0, 2.0)}
    path.write_text("n_interest = [1]\n")
    with pytest.raises(InvalidConfig, match=r"must hold one table, \[space\]; it has: n_interest"):
        read_space(path)
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_space(tmp_path / "nowhere.toml")


def test_command(data, config, tmp_path, formula, capfd):
    data.interactions.write_parquet(tmp_path / "interactions.parquet")
    data.items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "config.toml").write_text(to_toml(config))
    (tmp_path / "space.toml").write_text("[space]\nretriever.history_power = { low = 0.1, high = 0.9 }\n")
    words = ["tune", "--data", str(tmp_path), "--config", str(tmp_path / "config.toml")]
    words += ["--space", str(tmp_path / "space.toml"), "--out", str(tmp_path / "x"), "--seed", "1"]
    assert cli.main([*words, "--n-trials", "2", "--json"]) == 0
    out, err = capfd.readouterr()
    assert len(json.loads(out)["trials"]) == 2
    assert "trials: " in err
    assert cli.main([*words, "--n-trials", "3", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("3 trials of “two-stage” on ")
    assert "%|" not in err
    assert cli.main(["run", *words[1:5], "--systems", "popular", "--samples", "5", "--json", "--quiet"]) == 0
    assert (
        json.loads(capfd.readouterr().out)["test_hash"]
        == json.loads((tmp_path / "x" / "trials.json").read_text())["test_hash"]
    )


def test_the_spaces_that_come_with_the_package():
    for path in sorted((Path(__file__).parents[2] / "benchmarks" / "spaces").glob("*.toml")):
        assert len(read_space(path)) > 1
