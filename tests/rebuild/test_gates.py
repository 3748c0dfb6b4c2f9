"""Each gate by itself, on both sides of its limit."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig
from recsys.fitted import Fitted
from recsys.rebuild.gates import (
    GateResult,
    GatesConfig,
    freshest,
    from_json,
    golden,
    golden_lists,
    golden_users,
    index_recall,
    item_count,
    lists_of,
    refusal,
    reopened,
    to_json,
    unit_vectors,
)
from recsys.rebuild.refresh import Refreshed, refresh
from recsys.rebuild.reopen import lists_from, reader_process
from recsys.schema import validate
from recsys.synthetic import Synthetic, generate

GATES = GatesConfig()


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate(n_users=40, n_items=60, n_topics=4, events_per_user=10, n_cold_items=2)


@pytest.fixture(scope="module")
def served(tiny_bert: str, data: Synthetic) -> Recommender:
    """A recommender that knows all but the newest fifth of the interactions."""
    config = config_from_dict(
        {
            "encoder": {"model": tiny_bert},
            "contrastive": {"encoder_steps": 1, "tower_max_steps": 2},
            "n_interest": 0,
            "probabilities": False,
            "device": "cpu",
            "progress": False,
        }
    )
    cut = data.interactions["timestamp"].quantile(0.8, "lower")
    return Recommender(config).fit(data.interactions.filter(pl.col("timestamp") < cut), data.items)


@pytest.mark.parametrize(("now", "passed"), [(79, False), (80, True), (200, True), (201, False), (0, False)])
def test_item_count(now: int, passed: bool) -> None:
    assert item_count(now, 100, GATES).passed is passed


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, 2.0])
def test_vectors(served: Recommender, wrong: float) -> None:
    state = served._state
    assert unit_vectors(state).passed
    vectors = state.towers.item_vectors.copy()
    vectors[3] = wrong
    result = unit_vectors(replace(state, towers=replace(state.towers, item_vectors=vectors)))
    assert (result.value, result.passed) == (1.0, False)


def test_recall(served: Recommender) -> None:
    state = served._state
    gates = GatesConfig(recall_k=5)
    assert index_recall(state, gates).value == 1.0
    shuffled = np.ascontiguousarray(state.towers.item_vectors[::-1])  # the index is of other rows
    wrong = index_recall(replace(state, towers=replace(state.towers, item_vectors=shuffled)), gates)
    assert not wrong.passed
    short = index_recall(replace(state, towers=replace(state.towers, item_vectors=shuffled[:10])), gates)
    assert (short.value, short.passed) == (0.0, False)


def test_golden_users_with_few_items(served: Recommender) -> None:
    state = served._state
    assert golden(state, golden_lists(state, served.config, GATES), GATES).passed
    few = np.arange(len(state.catalogue)) < 3  # fewer than k can be shown, which is nobody's fault
    less = replace(state, catalogue=replace(state.catalogue, available=few))
    assert golden(less, golden_lists(less, served.config, GATES), GATES).passed


def reopening(process: subprocess.Popen[str], folder: Path, served: Recommender) -> GateResult:
    lists, people = golden_lists(served._state, served.config, GATES), golden_users(served._state, GATES)
    with ThreadPoolExecutor(1) as pool:
        return reopened(lists, pool.submit(lists_from, process, folder, people, GATES.k, seconds=600.0), people)


def test_a_folder_that_does_not_open(served: Recommender, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reader_process() as reader:
        empty = reopening(reader, tmp_path, served)
    assert (empty.value, empty.passed) == (0.0, False)
    assert "does not open in another process: " in caplog.text
    assert "BundleNotFound" in caplog.text


@pytest.mark.parametrize("answer", ["not JSON", "[1]", '{"u": []}'])
def test_another_list_in_the_other_process(served: Recommender, tmp_path: Path, answer: str) -> None:
    people = golden_users(served._state, GATES)
    lists = lists_of(served._state, people, served.config, GATES.k)
    right = {user: lists.filter(pl.col("user_id") == user)["item_id"].to_list() for user in people}
    assert reopening(Answering(json.dumps(right)), tmp_path, served).passed
    right[people[0]] = right[people[0]][::-1]
    one = reopening(Answering(json.dumps(right)), tmp_path, served)
    assert (one.value, one.passed) == (pytest.approx(1 - 1 / len(people)), False)
    assert not reopening(Answering(answer), tmp_path, served).passed


class Answering(subprocess.Popen[str]):
    """Another process that says what it is told to say."""

    def __init__(self, said: str) -> None:
        self.said, self.returncode = said, 0

    def __del__(self) -> None: ...

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        assert input is not None
        assert timeout is not None
        return self.said, ""


def test_a_worse_model_is_refused(served: Recommender, data: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = served._state
    tables = validate(data.interactions, data.items)
    new = refresh(parent, tables, served.config, device="cpu").fitted
    gates = GatesConfig(min_users=5)
    assert freshest(new, parent, tables, served.config, gates, "cpu").value is not None

    def spoilt(*arguments: Any, **named: Any) -> Refreshed:
        made = refresh(*arguments, **named)
        vectors = np.ascontiguousarray(made.fitted.towers.item_vectors[::-1])
        return replace(made, fitted=worthless(made.fitted, vectors))

    monkeypatch.setattr("recsys.rebuild.gates.refresh", spoilt)
    worse = freshest(new, parent, tables, served.config, gates, "cpu")
    assert worse.value is not None
    assert worse.value < -gates.margin
    assert not worse.passed


def worthless(state: Fitted, vectors: np.ndarray[Any, Any]) -> Fitted:
    """The same fit, whose people took nothing but the first item."""
    events = state.events.with_columns(item_row=pl.lit(0, dtype=pl.Int32))
    towers = replace(state.towers, item_vectors=vectors)
    return replace(state, events=events, towers=towers, hide_seen=False)


def test_what_failed_is_named() -> None:
    good = GateResult(name="recall", value=1.0, limit="at least 0.95", passed=True)
    bad = replace(good, value=0.5, passed=False)
    assert refusal([good], "v") is None
    said = str(refusal([good, bad], "v"))
    assert "version v was built and kept" in said
    assert "gate recall: 0.5 is not at least 0.95" in said
    assert from_json(to_json([good, bad])) == [good, bad]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_items": 3.0}, "min_items=3.0"),
        ({"margin": -1.0}, "margin 0 or more"),
        ({"k": 0}, "counts and k"),
    ],
)
def test_limits_that_make_no_sense(values: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        GatesConfig(**values)  # type: ignore[arg-type]
