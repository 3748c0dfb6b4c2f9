"""A model and a list of names that do not belong together are found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest

from ranking.model_names import check_model, model_names
from ranking.probability import HeadConfig, ProbabilityHead
from ranking.ranker import Ranker, RankerConfig

FEATURES = ["noise", "planted", 'size [cm], "raw": {a b}', "价格"]
RANKER = RankerConfig(n_trees=5, min_leaf_rows=5, n_threads=1)
HEAD = HeadConfig(n_trees=5, min_leaf_rows=5, n_threads=1)


def rows(seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    drawn = pl.DataFrame({name: rng.random(400) for name in FEATURES})
    taken = (drawn["planted"] > 0.7).cast(pl.Int8).alias("label")
    return drawn.with_columns(taken, user_row=pl.int_range(pl.len(), dtype=pl.Int32) // 20, weight=1.0)


@pytest.fixture
def ranker(tmp_path: Path) -> Path:
    Ranker(RANKER, seed=0).fit(rows(), None, FEATURES).save(tmp_path)
    return tmp_path


def test_every_name_can_be_told_from_every_other() -> None:
    assert model_names(["a b", "a,b", "a b"]) == ["0_a_b", "1_a_b", "2_a_b"]
    assert model_names(["价格", "x\ny\0z"]) == ["0_价格", "1_x_y_z"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[::-1], r"4 features and is read with 4, or in another order; .*\('0_noise', '0_价格'\)"),
        (lambda names: ["other", *names[1:]], r"\('0_noise', '0_other'\)"),
        (lambda names: names[:-1], "4 features and is read with 3"),
        (lambda names: [*names, "more"], "4 features and is read with 5"),
    ],
    ids=["order", "name", "fewer", "more"],
)
def test_a_list_of_other_names(ranker: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    (ranker / "features.json").write_text(json.dumps(change(FEATURES)))
    with pytest.raises(ValueError, match=f"ranker: the model was trained on .*{message}"):
        Ranker.load(ranker, RANKER, seed=0)


def test_a_head_with_a_list_of_other_names(tmp_path: Path) -> None:
    head = ProbabilityHead(HEAD, seed=0).fit(rows(), rows(1), FEATURES).calibrate(rows(2))
    head.save(tmp_path)
    facts = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps({**facts, "features": FEATURES[::-1]}))
    with pytest.raises(ValueError, match="probability head: the model was trained on 4 features"):
        ProbabilityHead.load(tmp_path, HEAD, seed=0)


def test_a_model_without_names_is_counted(tmp_path: Path) -> None:
    """As bundles hold them that were written before models carried names."""
    data: Any = lgb.Dataset(rows().select(FEATURES).to_numpy(), label=rows()["label"].to_numpy())
    booster = lgb.train({"objective": "binary", "verbosity": -1}, data, 3)
    check_model(booster, FEATURES, "ranker")
    with pytest.raises(ValueError, match="trained on 4 features and is read with 3"):
        check_model(booster, FEATURES[1:], "ranker")
