"""F10: models of stage 2 whose features are not those of the rows are refused by name, before anything is scored."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest

from ranking.model_names import model_names
from recsys import Recommender
from recsys.cli import exit_code
from recsys.errors import BundleCorrupt, InvalidData
from recsys.rebuild.features import check_features, check_refreshed
from recsys.rebuild.gates import GatesConfig
from recsys.rebuild.job import RebuildConfig, init, run
from recsys.rebuild.store import Store
from recsys.rebuild.watcher import BundleWatcher
from recsys.synthetic import Synthetic

pytestmark = pytest.mark.usefixtures("no_other_process")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EASY = RebuildConfig(gates=GatesConfig(margin=1.0))
Reseal = Callable[[Callable[[Path], object]], Path]


def features(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "ranker" / "features.json").read_text())
    return found


def another_ranker(folder: Path, name: str = "ranker") -> None:
    """A sound one, of another table: it reads a column that these rows do not have."""
    names = [*features(folder)[:-1], "item__weight_in_kg"]
    drawn = np.random.default_rng(0).random((300, len(names)))
    data = lgb.Dataset(drawn, label=(drawn[:, 0] > 0.5).astype(int), feature_name=model_names(names))
    (folder / name).mkdir(exist_ok=True)
    lgb.train({"objective": "binary", "verbosity": -1}, data, 3).save_model(folder / name / "model.txt")
    (folder / name / "features.json").write_text(json.dumps(names))


def another_order(folder: Path) -> None:
    (folder / "ranker" / "features.json").write_text(json.dumps(features(folder)[::-1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_ranker, "the version's ranker reads item__weight_in_kg, which its rows do not have; roll it back"),
        (lambda folder: another_ranker(folder, "new_ranker"), "new_ranker reads item__weight_in_kg"),
        (another_order, r"does not open: ranker: the model was trained on \d+ features and is read with \d+"),
    ],
    ids=["another model", "the one for new items", "another order"],
)
def test_a_ranker_of_other_rows(
    store: Store,
    data: Synthetic,
    resealed: Reseal,
    still_serves: Callable[[Store], None],
    change: Callable[[Path], None],
    message: str,
    put_live: Callable[[Store, Path], str],
) -> None:
    watcher = BundleWatcher(store, device="cpu")
    good = store.current()
    broken = resealed(change)
    with pytest.raises(BundleCorrupt, match=message):
        init(store, broken, now=NOW, replace=True)
    put_live(store, broken)
    before = store.current()
    with pytest.raises(BundleCorrupt, match=message) as caught:
        run(store, data.interactions, data.items, data.users, now=NOW, config=EASY)
    assert exit_code(caught.value) == 69
    assert store.current() == before
    assert not watcher.poll(NOW)
    metrics = watcher.metrics(NOW)
    assert good is not None
    assert metrics["version"] == good.version
    assert "item__weight_in_kg" in metrics["last_error"] or "is read with" in metrics["last_error"]
    with watcher.serving() as recommender:
        assert recommender.recommend(recommender.users.head(3), 5).height == 15
    watcher.close()
    store.rollback(run_id="back", promoted_at=NOW)
    still_serves(store)
    assert run(store, data.interactions, data.items, data.users, now=NOW, config=EASY).outcome == "promoted"


def test_tables_that_leave_a_feature_out(store: Store, data: Synthetic, still_serves: Callable[[Store], None]) -> None:
    """A column whose values the models have never seen says nothing of anybody."""
    before = store.current()
    alike = data.users.with_columns(favourite_topic=pl.lit("all"))
    with pytest.raises(InvalidData, match=r"users\.favourite_topic: has none of the values of the fit") as caught:
        run(store, data.interactions, data.items, alike, now=NOW, config=EASY)
    assert exit_code(caught.value) == 65
    assert store.current() == before
    assert len(store.versions()) == 1
    still_serves(store)


def test_items_of_one_category_alone(store: Store, data: Synthetic, still_serves: Callable[[Store], None]) -> None:
    """Where there is one category it is no source, whose score the ranker would read."""
    alike = data.items.with_columns(categories=pl.lit("all"))
    with pytest.raises(InvalidData, match=r"the ranker reads category_score, .*which cannot be computed") as caught:
        run(store, data.interactions, alike, data.users, now=NOW, config=EASY)
    assert exit_code(caught.value) == 65
    still_serves(store)


def test_a_model_that_finds_its_features_passes(model: Path) -> None:
    served = Recommender.load(model, device="cpu")
    assert served._state.ranker is not None
    check_features(served._state, served.config)
    check_refreshed(served._state, served._state, served.config)
