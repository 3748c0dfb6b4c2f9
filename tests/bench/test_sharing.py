"""Fits that share stage 1 learn what separate fits learn, to the bit."""

from dataclasses import fields, replace

import pytest

from indexing.ease import EaseConfig
from indexing.retriever import RetrieverConfig
from ranking.features import FeatureConfig
from ranking.interest import InterestConfig
from ranking.probability import HeadConfig
from ranking.ranker import RankerConfig
from recsys import Recommender, pipeline
from recsys.bench import SharedFits
from recsys.config import RecommenderConfig, config_from_dict
from recsys.pipeline import ONLY_LATER, first_stage_settings
from recsys.schema import validate
from recsys.synthetic import generate

BEHAVIOUR = {
    "ease": EaseConfig(regularization=3.0),
    "retriever": RetrieverConfig(vector=0, lexical=20, covisitation=0),
    "features": FeatureConfig(similar_length=2),
    "ranker": RankerConfig(n_leaves=5),
    "heads": HeadConfig(n_leaves=5),
    "max_label_users": 90,
    "max_ranker_rows": 4000,
    "novelty_limit": 0.0,
    "event_grades": ("interaction",),
    "probabilities": True,
}
INTEREST = {"interest": InterestConfig(max_groups=8, group_size=3, precision="fp32"), "keep_interest": "always"}
LATER = {"behaviour": BEHAVIOUR, "interest": INTEREST, "no interest": {"n_interest": 0}}


@pytest.fixture(scope="module")
def tables():
    made = generate(n_users=100, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    return validate(made.interactions, made.items)


@pytest.fixture(scope="module")
def config(tiny_bert) -> RecommenderConfig:
    return config_from_dict(
        {
            "encoder": {"model": tiny_bert, "precision": "fp32"},
            "contrastive": {"encoder_steps": 2, "tower_max_steps": 3},
            "interest": {"max_groups": 8, "group_size": 4, "precision": "fp32"},
            "n_interest": 4,
            "probabilities": False,
            "device": "cpu",
            "progress": False,
        }
    )


@pytest.fixture(scope="module")
def fits(tables, config):
    """Stage 1 learnt for the configuration above."""
    fits = SharedFits()
    fits.fit(tables.interactions, tables.items, config)
    return fits


def test_every_later_setting_is_tried():
    tried = {name for changes in LATER.values() for name in changes}
    assert tried == set(ONLY_LATER) < {entry.name for entry in fields(RecommenderConfig)}


@pytest.mark.parametrize("name", LATER)
def test_a_fit_that_takes_over_stage_1_learns_what_a_fit_alone_learns(name, tables, config, fits, monkeypatch):
    other = replace(config, **LATER[name])
    alone = Recommender(other).fit(tables.interactions, tables.items)
    monkeypatch.setattr(pipeline, "learn_first_stage", None)  # calling it would fail
    monkeypatch.setattr(pipeline, "renew_first_stage", None)
    ours = fits.fit(tables.interactions, tables.items, other)
    users = alone.users
    assert ours.recommender.recommend(users, 10, details=True).equals(alone.recommend(users, 10, details=True))
    assert ours.recommender.retrieve(users, 50).equals(alone.retrieve(users, 50))
    assert set(ours.recommender.notes) == set(alone.notes)
    assert ours.recommender.sources == alone.sources
    assert ours.reads_interest == (alone._state.interest is not None)
    if other.probabilities:
        pairs = [(user, tables.items["item_id"][0]) for user in users]
        assert ours.recommender.predict_proba(pairs).equals(alone.predict_proba(pairs))


def test_other_rows_items_or_towers_are_learnt_anew(tables, config):
    plain, fits = replace(config, n_interest=0), SharedFits()
    seen = []
    for rows, items, settings in (
        (tables.interactions, tables.items, plain),
        (tables.interactions.clone(), tables.items.clone(), replace(plain, max_label_users=50)),
        (tables.interactions.head(900), tables.items, plain),
        (tables.interactions.head(900), tables.items.head(79), plain),
        (tables.interactions.head(900), tables.items.head(79), replace(plain, seed=1)),
    ):
        ours = fits.fit(rows, items, settings)
        seen.append(fits._newest)
        assert ours.fit.seconds > 0
    assert seen[0] is seen[1]
    assert len({id(stage) for stage in seen}) == 4
    assert first_stage_settings(plain) == first_stage_settings(config)
