"""Histories found by offsets instead of by filters."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recsys.snapshot import Timelines, gather_people, places_of

rng = np.random.default_rng(0)
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{row}" for row in rng.integers(0, 30, 400)],
        "item_row": pl.Series(rng.integers(0, 20, 400), dtype=pl.Int32),
        "seconds": rng.integers(0, 50, 400).astype(np.float64),
        "event_row": pl.Series(rng.integers(0, 2, 400), dtype=pl.Int16),
    }
)
NUMBERS = pl.DataFrame({"user_id": ["u1", "u2", "u5"], "user__age": pl.Series([1.0, 2.0, 5.0], dtype=pl.Float32)})
ASKED = pl.Series(["u5", "nobody", "u2", "u11", "a", "zz"])
TIMELINES = Timelines.of(EVENTS)


def test_histories_equal_a_join():
    people = TIMELINES.people(ASKED, 60.0, NUMBERS)
    rows = ASKED.to_frame("user_id").with_row_index("user_row").cast({"user_row": pl.Int32})
    expected = EVENTS.join(rows, on="user_id").sort("user_row", "seconds", "item_row", maintain_order=True)
    assert_frame_equal(people.history, expected.select("user_row", "item_row", "seconds", "event_row"))
    assert people.moments.rows() == [(row, 60.0) for row in range(6)]
    assert people.numbers is not None
    assert people.numbers.rows() == [(0, 5.0), (1, None), (2, 2.0), (3, None), (4, None), (5, None)]


def test_the_last_event_of_each():
    last = dict(EVENTS.group_by("user_id").agg(pl.col("seconds").max()).iter_rows())
    np.testing.assert_equal(TIMELINES.ends(ASKED), [last.get(user, math.nan) for user in ASKED])


def test_gathering_from_a_frame_is_the_same():
    found, expected = gather_people(EVENTS, ASKED, 60.0, NUMBERS), TIMELINES.people(ASKED, 60.0, NUMBERS)
    assert_frame_equal(found.history, expected.history)
    assert_frame_equal(found.moments, expected.moments)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 5), (4, 9), (0, 6)])
def test_a_slice_is_the_same_as_fewer_users(start, stop):
    part = TIMELINES.people(ASKED, 60.0, NUMBERS).slice(start, stop)
    expected = TIMELINES.people(ASKED[start:stop], 60.0, NUMBERS)
    for name in ("history", "moments", "numbers"):
        assert_frame_equal(getattr(part, name), getattr(expected, name))


def test_without_events_nobody_is_known():
    people = Timelines.of(EVENTS.clear()).people(ASKED, 1.0, None)
    assert people.history.is_empty()
    assert len(people) == len(ASKED)
    assert np.isnan(Timelines.of(EVENTS.clear()).ends(ASKED)).all()


@pytest.mark.parametrize("ordered", [pl.Series(["a", "c", "é"]), pl.Series(["b"]), pl.Series([], dtype=pl.String)])
def test_places_in_an_ascending_series(ordered):
    wanted = pl.Series(["é", "a", "b", "zz", "c", ""])
    listed = ordered.to_list()
    assert places_of(ordered, wanted).tolist() == [listed.index(w) if w in listed else -1 for w in wanted]
