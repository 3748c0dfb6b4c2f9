"""The ablation: which variants there are, what they share, and whom they are compared with."""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from ranking.interest import InterestConfig
from recsys import pipeline
from recsys.bench import run_bench
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.pipeline import first_stage_settings
from recsys.synthetic import generate

PATH = Path(__file__).parents[2] / "benchmarks" / "ablation.py"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config(tiny_bert):
    return RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=2, tower_max_steps=3),
        interest=InterestConfig(max_groups=8, group_size=3),
        n_interest=2,
        probabilities=False,
        device="cpu",
        progress=False,
    )


def test_stage_1_is_learnt_three_times_at_most(ablation, config):
    made = list(ablation.variants(config).items())
    stages = [(first_stage_settings(variant.config), variant.text) for _, variant in made]
    changes = sum(one != other for one, other in pairwise(stages))
    assert (len(made), changes + 1) == (18, 3)
    assert made[0][0] == "whole"
    for name in ablation.SOURCES:
        depths = dict(made)[f"without {name}"].config.retriever
        assert depths == replace(config.retriever, **{name: 0})


def test_parts_are_compared_with_the_whole_alone_and_share_its_stage_1(ablation, config, monkeypatch):
    learnt = []
    learn = pipeline.learn_first_stage
    monkeypatch.setattr(pipeline, "learn_first_stage", lambda *given: learnt.append(1) or learn(*given))
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    data = Dataset(name="synthetic", interactions=made.interactions, items=made.items)
    names = ("whole", "without covisitation", "without lexical")
    chosen = {name: variant for name, variant in ablation.variants(config).items() if name in names}
    (table,) = run_bench(data, config, systems=chosen, reference="whole", n_samples=20).tables
    assert len(learnt) == 1
    assert [(part.system, part.other) for part in table.differences] == [("whole", name) for name in names[1:]]
    reads = [variant.ours.reads_interest for variant in chosen.values()]
    assert reads[0] or not any(reads)
    assert "lexical" not in chosen["without lexical"].ours.recommender.sources
