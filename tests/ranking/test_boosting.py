from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest

from ranking.boosting import grow

SETTINGS = {"objective": "binary", "verbosity": -1, "num_threads": 1, "seed": 0}
PATIENCE = 5


def data(*, reference: lgb.Dataset | None = None) -> lgb.Dataset:
    rng = np.random.default_rng(0 if reference is None else 1)
    rows = rng.standard_normal((400, 3))
    labels = (rows[:, 0] > 0).astype(float) if reference is None else rng.integers(2, size=400)
    return lgb.Dataset(rows, label=labels, reference=reference)


def grown(*, stops: bool, progress: bool = False) -> lgb.Booster:
    learnt = data()
    validation = data(reference=learnt) if stops else None  # its labels are noise: no tree helps
    return grow(SETTINGS, learnt, 40, validation=validation, early_stopping=PATIENCE, name="grow", progress=progress)


def test_grows_all_trees_where_nothing_stops_it():
    assert grown(stops=False).num_trees() == 40


def test_stops_where_more_trees_do_not_help():
    booster = grown(stops=True)
    assert booster.best_iteration < 10
    assert booster.num_trees() < 40


@pytest.mark.parametrize("stops", [False, True])
def test_counts_trees_on_stderr_where_that_is_asked_for(stops, capfd):
    quiet = grown(stops=stops)
    assert capfd.readouterr() == ("", "")
    shown = grown(stops=stops, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert f"| {shown.best_iteration + PATIENCE if stops else 40}/40" in err
    assert shown.model_to_string() == quiet.model_to_string()
