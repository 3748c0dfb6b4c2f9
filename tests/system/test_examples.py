"""Every example runs from top to bottom."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from indexing.contrastive import ContrastiveConfig
from indexing.encoder import EncoderConfig
from ranking.interest import InterestConfig
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.synthetic import generate

ROOT = Path(__file__).resolve().parents[2]


def load_example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_synthetic_finds_the_next_item_of_many_users(tiny_bert):
    run = subprocess.run(
        [sys.executable, "examples/synthetic.py", tiny_bert],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"whose next item is", run.stdout)) == 3
    found = re.search(r"among the ten of (\d+) of 100 users", run.stdout)
    assert found
    # 10 of about 280 unseen items drawn blindly would find 4.
    assert int(found[1]) > 50


@pytest.fixture(scope="module")
def journey_output(tiny_bert):
    """What the demo prints, on a small generated year instead of the real one."""
    import contextlib
    import io

    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    data = Dataset(name="a small year", interactions=made.interactions, items=made.items)
    config = RecommenderConfig(
        encoder=EncoderConfig(model=tiny_bert),
        contrastive=ContrastiveConfig(encoder_steps=3, tower_max_steps=5),
        interest=InterestConfig(max_groups=16, group_size=4),
        n_interest=4,
        device="cpu",
        progress=False,
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        load_example("complete_journey").main(data, config)
    return out.getvalue()


def test_the_journey_says_what_is_used(journey_output):
    first = journey_output.splitlines()[0]
    assert first.startswith(
        "a small year: 720 of 720 purchases (100%) are used, of all 60 households and with all 80 products."
    )
    assert re.search(r"before 2024-0\d-\d\d \d\d:\d\d, tested on the last 10%\.$", first)


def test_the_journey_shows_the_table_and_three_households(journey_output):
    assert "new items only: " in journey_output
    assert journey_output.count("recommended (* bought in the test weeks)") == 3
    blocks = journey_output.split("household u")[1:]
    for block in blocks:
        lines = [line for line in block.splitlines()[1:] if line.strip()]
        assert len(lines) == 10
        assert all(re.search(r"[* ]\s+-?\d+\.\d{3}  \S", line) for line in lines)


def test_the_journey_marks_what_was_bought(tiny_bert):
    import polars as pl

    journey = load_example("complete_journey")
    made = generate(n_users=60, n_items=80, n_topics=5, events_per_user=12, n_cold_items=5)
    prepared = journey.prepare(
        Dataset(name="a small year", interactions=made.interactions, items=made.items),
        RecommenderConfig(encoder=EncoderConfig(model=tiny_bert)),
    )
    user, bought = prepared.split.test.select("user_id", "item_id").row(0)
    other = prepared.split.test.filter(pl.col("user_id") != user)["item_id"][0]
    lists = pl.DataFrame({"user_id": [user] * 2, "item_id": [bought, other], "rank": [1, 2], "score": [1.5, -2.0]})
    lines = journey.side_by_side(user, lists, prepared).splitlines()
    marked = [line for line in lines[1:] if "*" in line]
    assert len(marked) == 1
    assert "*   1.500" in marked[0]
    newest = prepared.split.train.filter(user_id=user)["item_id"][-1]
    title = prepared.tables.items.filter(item_id=newest)["title"].item()
    assert lines[1].startswith(f"  {title}")
