"""The baselines that are kept with the benchmarks can be read and gated against."""

from pathlib import Path

import pytest

from recsys.bench.gating import PASSED, gate
from recsys.bench.result import read_result

BASELINES = sorted((Path(__file__).parents[2] / "benchmarks" / "baselines").glob("*.json"))


def test_there_are_baselines() -> None:
    assert BASELINES


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_passes_against_itself_and_names_no_path(path: Path) -> None:
    found = gate(path, path)
    assert (found["verdict"], found["paired"]) == (PASSED, False)
    dataset = read_result(path).dataset
    assert path.stem in (dataset, f"{dataset}-time")  # of a scenario, which may cut its data otherwise
    assert "/shared/" not in path.read_text(encoding="utf-8")
