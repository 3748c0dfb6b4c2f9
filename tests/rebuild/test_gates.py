"""Each gate by itself, on both sides of its limit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys import Recommender
from recsys.config import config_from_dict
from recsys.errors import InvalidConfig, PublishRefused
from recsys.rebuild.gates import (
    GateResult,
    GatesConfig,
    from_json,
    golden,
    index_recall,
    item_count,
    refuse_failed,
    reopened,
    to_json,
    unit_vectors,
)
from recsys.synthetic import generate

GATES = GatesConfig()


@pytest.fixture(scope="module")
def served(tiny_bert: str) -> Recommender:
    data = generate(n_users=40, n_items=60, n_topics=4, events_per_user=10, n_cold_items=2)
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
    return Recommender(config).fit(data.interactions, data.items)


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
    assert golden(state, served.config, GATES).passed
    few = np.arange(len(state.catalogue)) < 3  # fewer than k can be shown, which is nobody's fault
    assert golden(replace(state, catalogue=replace(state.catalogue, available=few)), served.config, GATES).passed


def test_a_folder_that_does_not_open_or_answers_otherwise(served: Recommender, tmp_path: Path) -> None:
    empty = reopened(tmp_path, served._state, served.config, GATES)
    assert (empty.value, empty.passed) == (0.0, False)


def test_what_failed_is_named() -> None:
    good = GateResult(name="recall", value=1.0, limit="at least 0.95", passed=True)
    bad = replace(good, value=0.5, passed=False)
    refuse_failed([good], "v")
    with pytest.raises(PublishRefused, match=r"version v was built and kept.*gate recall: 0\.5 is not at least 0\.95"):
        refuse_failed([good, bad], "v")
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
