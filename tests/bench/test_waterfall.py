from types import SimpleNamespace

import polars as pl
import pytest

from recsys.bench.explain_pair import explain_pair
from recsys.bench.waterfall import waterfalls
from recsys.errors import InvalidData


def frame(rows, columns):
    made = pl.DataFrame(rows, schema=columns, orient="row")
    return made.with_columns(protocol=pl.lit("new items only"), cut=pl.lit(0, pl.Int32))


@pytest.fixture
def folder():
    """k = 2. User a wants p (kept), q (pushed out), r (never found), s (rescued); t is a candidate that stays low."""
    candidates = [
        ("a", "p", 1, "vector+ease"),
        ("a", "q", 2, "ease"),
        ("a", "s", 3, "vector"),
        ("a", "t", 4, "popular"),
    ]
    return SimpleNamespace(
        path="results",
        result=SimpleNamespace(
            k=2, systems=("popular", "two-stage"), cuts=(1,), tables=(SimpleNamespace(protocol="new items only"),)
        ),
        truth=frame(
            [("a", "p", False), ("a", "q", False), ("a", "r", True), ("a", "s", False)],
            ["user_id", "item_id", "cold_item"],
        ),
        candidates=frame(candidates, ["user_id", "item_id", "rank", "source"]).with_columns(system=pl.lit("two-stage")),
        lists=frame(
            [
                ("two-stage", "a", "p", 1),
                ("two-stage", "a", "s", 2),
                ("two-stage", "a", "q", 3),
                ("popular", "a", "r", 2),
            ],
            ["system", "user_id", "item_id", "rank"],
        ),
    )


def test_counts_by_stage_and_source(folder):
    (found,) = waterfalls(folder)
    assert (found.pairs, found.candidates, found.retrieval, found.final) == (4, 3, 2, 2)
    assert (found.rescued, found.dropped, found.no_interest, found.depth) == (1, 1, None, 4)
    assert {source.name: (source.found, source.alone) for source in found.sources} == {
        "vector": (2, 1),
        "ease": (2, 1),
        "popular": (0, 0),
    }
    assert "1 (25%) were not among the candidates" in found.sentence


def test_no_two_stage_system_no_waterfall(folder):
    folder.candidates = folder.candidates.clear()
    assert waterfalls(folder) == ()


@pytest.mark.parametrize(
    ("item", "stage", "words"),
    [
        ("p", "shown", "vector and ease brought it to rank 1 of the candidates, and the ranker put it at rank 1"),
        ("q", "ranking", "inside the first 2; the ranker pushed it to rank 3"),
        ("r", "retrieval", "it had no interaction before the cut. In the first 2 of: popular at rank 2."),
        ("s", "shown", "rank 3 of the candidates, and the ranker put it at rank 2"),
        ("t", "cut off", "was not what user a took: popular brought it to rank 4"),
    ],
)
def test_where_an_item_fell_out(folder, item, stage, words):
    (found,) = explain_pair(folder, "a", item)
    assert found["stage"] == stage
    assert words in found["sentence"]


def test_an_item_that_nobody_knows(folder):
    with pytest.raises(InvalidData, match=r"knows no item 'zzz': nobody took it in the test"):
        explain_pair(folder, "a", "zzz")


def test_an_item_of_the_list_that_is_no_kept_candidate(folder):
    folder.candidates = folder.candidates.filter(pl.col("item_id") != "s")
    (found,) = explain_pair(folder, "a", "s")
    assert (found["stage"], found["candidate_rank"], found["final_rank"]) == ("shown", None, 2)
    assert "at rank 2 of the list, though not among the candidates that were kept" in found["sentence"]


def test_what_cannot_be_explained(folder):
    with pytest.raises(InvalidData, match="user 'z' was not tested"):
        explain_pair(folder, "z", "p")
    folder.candidates = folder.candidates.clear()
    with pytest.raises(InvalidData, match="holds no candidates of 'two-stage'"):
        explain_pair(folder, "a", "p")
