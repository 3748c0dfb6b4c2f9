"""Reading what a fit left behind."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from recsys import Recommender
from recsys.bundle import write_bundle
from recsys.config import RecommenderConfig
from recsys.errors import BundleIncompatible
from recsys.fitted import STATE, read_state


def written(folder: Path, **changes: object) -> dict[str, object]:
    """A folder with nothing but the small facts."""
    config = {**asdict(RecommenderConfig()), **changes}
    (folder / STATE).write_text(json.dumps({"config": config}), encoding="utf-8")
    return {}


def test_the_configuration_is_read_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path, seed=7)
    assert read_state(tmp_path)["config"]["seed"] == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warp": 9}, "unknown key warp"),
        ({"ranker": {"n_tree": 9}}, r"unknown key ranker\.n_tree"),
        ({"seed": "many"}, "seed must be int"),
    ],
)
def test_settings_of_another_version_are_named_with_the_remedy(tmp_path: Path, changes: dict, named: str) -> None:
    write_bundle(tmp_path / "model", lambda folder: written(folder, **changes))
    expected = rf"does not read \({named}.*Fit again, or load it with the version"
    with pytest.raises(BundleIncompatible, match=expected):
        Recommender.load(tmp_path / "model")
