"""Nothing crosses a cut: known answers for each split, and properties over random logs."""

import hashlib
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys.errors import InvalidConfig, InvalidData
from recsys.splits import (
    end_of,
    hash_of,
    leave_last_out,
    random_split,
    rolling_splits,
    split,
    split_all,
    time_split,
)
from recsys.windows import WindowConfig, make_windows, moments, window_between

START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "event": pl.String,
    "value": pl.Float64,
    "weight": pl.Float64,
}


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def log(*rows: tuple[str, str, int]) -> pl.DataFrame:
    """Interactions from (user, item, second)."""
    return pl.DataFrame(
        [(user, item, at(second), "interaction", None, 1.0) for user, item, second in rows],
        schema=SCHEMA,
        orient="row",
    )


def rows_of(frame: pl.DataFrame) -> list[tuple[str, str, int]]:
    return [
        (user, item, int((timestamp - START).total_seconds()))
        for user, item, timestamp in frame.select("user_id", "item_id", "timestamp").iter_rows()
    ]


@st.composite
def logs(draw: st.DrawFn) -> pl.DataFrame:
    """Few users, items and seconds, so that ties, repeats and identical rows are common."""
    row = st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 8))
    frame = log(*draw(st.lists(row, min_size=1, max_size=40)))
    weights = draw(st.lists(st.sampled_from([1.0, 2.0]), min_size=frame.height, max_size=frame.height))
    return frame.with_columns(weight=pl.Series(weights))


def sorted_union(*frames: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(frames).sort(frames[0].columns)


def test_time_split_cuts_at_the_timestamp_nearest_to_the_share():
    interactions = log(*[("u", f"i{second}", second) for second in range(10)])
    result = split(interactions, "time", test_share=0.2)
    assert result.kind == "time"
    assert [second for _, _, second in rows_of(result.train)] == list(range(8))
    assert [second for _, _, second in rows_of(result.test)] == [8, 9]
    assert result.as_of == at(8)
    assert result.notes == (
        "Global cut at 2024-01-01T00:00:08+00:00: 2 of 10 rows (20.0%) are test.",
        "0 test users and 2 test items have no row in train; they are kept.",
    )


def test_time_split_never_parts_equal_timestamps():
    interactions = log(*[("u", f"i{n}", 0 if n < 3 else 5) for n in range(10)])
    result = time_split(interactions, test_share=0.1)
    assert (result.train.height, result.test.height) == (3, 7)
    assert result.as_of == at(5)


def test_time_split_of_one_moment_has_an_empty_test():
    result = time_split(log(("u", "a", 3), ("v", "b", 3)))
    assert (result.train.height, result.test.height) == (2, 0)
    assert result.as_of == at(4)


def test_leave_last_out_holds_out_the_last_row_of_users_with_enough_items():
    interactions = log(
        ("u", "a", 1), ("u", "b", 2), ("u", "d", 3), ("u", "c", 3),  # tie in time: the item decides
        ("v", "a", 1), ("v", "b", 9),
    )  # fmt: skip
    result = leave_last_out(interactions, min_items=3, repeats=False)
    assert rows_of(result.test) == [("u", "d", 3)]
    assert_frame_equal(sorted_union(result.train, result.test), sorted_union(interactions))
    assert result.as_of == at(10)
    assert "Leaks across users in time" in result.notes[0]
    assert result.notes[1] == "1 of 2 users have at least 3 distinct items and a held-out row."


def test_leave_last_out_treats_repeats_as_asked():
    interactions = log(("u", "a", 1), ("u", "b", 2), ("u", "a", 3))
    kept = split(interactions, "leave-last-out", min_items=2, repeats=True)
    assert rows_of(kept.test) == [("u", "a", 3)]
    dropped = split(interactions, "leave-last-out", min_items=2)
    assert rows_of(dropped.test) == [("u", "b", 2)]
    assert rows_of(dropped.train) == [("u", "a", 1)]
    assert (kept.notes[2], dropped.notes[2]) == (
        "Repeated events are kept.",
        "Only the first event of each (user, item) pair is kept.",
    )


def test_test_hash_is_that_of_the_sorted_distinct_pairs():
    result = time_split(log(("u", "a", 0), ("w", "x", 1), ("v", "b", 1), ("v", "b", 1)), test_share=0.7)
    expected = hashlib.sha256(b'["v", "b"]\n["w", "x"]\n').hexdigest()[:16]
    assert result.test_hash == expected


def test_rolling_tests_follow_each_other_and_know_only_the_past():
    interactions = log(*[("u", f"i{second}", second) for second in range(20)])
    cuts = split_all(interactions, "rolling", test_share=0.3, n_cuts=3)
    assert [[second for _, _, second in rows_of(cut.test)] for cut in cuts] == [[14, 15], [16, 17], [18, 19]]
    assert [cut.train.height for cut in cuts] == [14, 16, 18]
    assert [cut.as_of for cut in cuts] == [at(14), at(16), at(18)]
    assert cuts[0].notes[0].startswith("Rolling: 3 global cuts; ")


def test_rolling_cuts_that_ties_make_the_same_are_one():
    interactions = log(*[("u", f"i{n}", 0 if n < 3 else 5) for n in range(10)])
    (only,) = rolling_splits(interactions, test_share=0.3, n_cuts=3)
    assert (only.train.height, only.test.height) == (3, 7)


@settings(max_examples=30, deadline=None)
@given(logs(), st.integers(1, 4))
def test_no_row_of_a_rolling_cut_crosses_it(interactions, n_cuts):
    cuts = rolling_splits(interactions, test_share=0.5, n_cuts=n_cuts)
    for cut in cuts:
        assert (cut.train["timestamp"] < cut.as_of).all()
        assert (cut.test["timestamp"] >= cut.as_of).all()
    assert sum(cut.test.height for cut in cuts) + cuts[0].train.height == interactions.height


def test_a_random_split_draws_its_share_and_warns():
    interactions = log(*[("u", f"i{second}", second) for second in range(20)])
    cut = random_split(interactions, test_share=0.25, seed=1)
    assert (cut.train.height, cut.test.height) == (15, 5)
    assert_frame_equal(sorted_union(cut.train, cut.test), sorted_union(interactions))
    assert cut.notes[0].startswith("WARNING: a random split leaks the future")
    assert split(interactions, "random", test_share=0.25).test_hash != cut.test_hash
    assert (
        random_split(interactions.sample(20, shuffle=True, seed=3), test_share=0.25, seed=1).test_hash == cut.test_hash
    )
    assert random_split(interactions[:1], test_share=0.9).train.height == 1


def test_the_hash_of_one_cut_is_the_splits_own():
    cuts = rolling_splits(log(*[("u", f"i{n}", n) for n in range(10)]), test_share=0.4, n_cuts=2)
    assert hash_of(cuts[0].test) == cuts[0].test_hash
    assert hash_of(cuts[0].test, cuts[1].test) not in {cut.test_hash for cut in cuts}


def test_time_windows_of_a_known_case():
    interactions = log(*[("u", f"i{second}", second) for second in range(10)])
    windows = make_windows(interactions, WindowConfig(kind="time", label_share=0.2))
    assert windows.kind == "time"
    assert (windows.start_b, windows.start_c, windows.end) == (at(6), at(8), at(10))
    assert [second for _, _, second in rows_of(windows.history_b)] == [0, 1, 2, 3, 4, 5]
    assert [second for _, _, second in rows_of(windows.labels_b)] == [6, 7]
    assert [second for _, _, second in rows_of(windows.labels_c)] == [8, 9]
    assert windows.reason == "Global cuts in time, as asked for."


def test_last_windows_of_a_known_case():
    interactions = log(
        ("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("u", "d", 4),
        ("v", "a", 5), ("v", "b", 6), ("v", "c", 7),
        ("w", "a", 8), ("w", "b", 9),
    )  # fmt: skip
    windows = make_windows(interactions, WindowConfig(kind="last"))
    assert rows_of(windows.labels_c) == [("u", "d", 4), ("v", "c", 7)]
    assert rows_of(windows.labels_b) == [("u", "c", 3)]
    short = [("v", "a", 5), ("v", "b", 6), ("w", "a", 8), ("w", "b", 9)]
    assert rows_of(windows.history_b) == [("u", "a", 1), ("u", "b", 2), *short]
    assert rows_of(windows.history_c) == [("u", "a", 1), ("u", "b", 2), ("u", "c", 3), *short]
    assert (windows.start_b, windows.start_c, windows.end) == (None, None, at(10))
    assert windows.reason == "Each user's last interactions, as asked for."


def steady(n_users: int) -> pl.DataFrame:
    """Every user acts in every second."""
    return log(*[(f"u{user}", f"i{second}", second) for second in range(10) for user in range(n_users)])


def test_auto_takes_time_where_the_windows_hold_enough_users():
    windows = make_windows(steady(60), WindowConfig())
    assert windows.kind == "time"
    assert windows.reason == (
        "Global cuts in time: windows B and C hold 60 and 60 users with labels and history; "
        "50 are needed (60 users have 3 or more interactions)."
    )


def test_auto_takes_last_where_users_are_too_few():
    windows = make_windows(steady(49), WindowConfig())
    assert windows.kind == "last"
    assert windows.reason == (
        "Each user's last interactions: under global cuts windows B and C hold 49 and 49 users with labels "
        "and history; 50 are needed (49 users have 3 or more interactions)."
    )


def test_auto_takes_last_where_users_come_in_bursts():
    bursts = log(*[(f"u{user:03}", f"i{n}", 10 * user + n) for user in range(100) for n in range(5)])
    windows = make_windows(bursts, WindowConfig(min_label_users=1, min_label_users_share=0.05))
    assert windows.kind == "last"
    assert "hold 0 and 0 users" in windows.reason
    assert (windows.labels_b.height, windows.labels_c.height) == (100, 100)


@pytest.mark.parametrize("kind", ["auto", "time", "last"])
@pytest.mark.parametrize(
    "interactions",
    [
        log(("u", "a", 0)),
        log(("u", "a", 0), ("u", "a", 0)),
        log(*[(u, i, 7) for u in "uvw" for i in "abcde"]),
    ],
    ids=["one row", "one pair twice", "one moment"],
)
def test_degenerate_logs_lie_in_history_or_labels_without_error(kind, interactions):
    windows = make_windows(interactions, WindowConfig(kind=kind))
    assert windows.history_b.height > 0
    assert windows.end == end_of(interactions)
    assert_frame_equal(sorted_union(windows.history_c, windows.labels_c), sorted_union(interactions))


def test_one_cut_only_leaves_window_b_empty():
    windows = make_windows(log(("u", "a", 0), ("u", "b", 5)), WindowConfig(kind="time"))
    assert rows_of(windows.history_b) == [("u", "a", 0)]
    assert windows.labels_b.is_empty()
    assert rows_of(windows.labels_c) == [("u", "b", 5)]
    assert windows.start_b == windows.start_c == at(5)


def test_the_window_between_has_both_cuts_half_a_window_later():
    windows = make_windows(log(*[("u", f"i{second}", second) for second in range(20)]), WindowConfig(kind="time"))
    assert [second for _, _, second in rows_of(windows.labels_b)] == [16, 17]
    between = window_between(windows)
    assert [second for _, _, second in rows_of(between.history_b)] == list(range(17))
    assert [second for _, _, second in rows_of(between.labels_b)] == [17, 18]
    assert (between.start_b, between.start_c, between.end) == (at(17), at(19), windows.end)


def test_nothing_lies_between_last_interactions_or_in_a_window_of_one_moment():
    interactions = log(*[("u", f"i{second}", second) for second in range(10)])
    assert window_between(make_windows(interactions, WindowConfig(kind="last"))) is None
    windows = make_windows(interactions, WindowConfig(kind="time", label_share=0.1))
    assert windows.labels_b.height == 1
    assert window_between(windows) is None


@settings(max_examples=60, deadline=None)
@given(interactions=logs(), share=st.floats(0.05, 0.45))
def test_the_window_between_parts_all_rows_at_its_own_moments(interactions, share):
    windows = make_windows(interactions, WindowConfig(kind="time", label_share=share))
    between = window_between(windows)
    if between is not None:
        assert windows.start_b < between.start_b < windows.start_c <= between.start_c
        assert (between.history_b["timestamp"] < between.start_b).all()
        assert between.labels_b["timestamp"].is_between(between.start_b, between.start_c, closed="left").all()
        assert_frame_equal(sorted_union(between.history_c, between.labels_c), sorted_union(interactions))


@settings(max_examples=60, deadline=None)
@given(interactions=logs(), kind=st.sampled_from(["auto", "time", "last"]), share=st.floats(0.05, 0.45))
def test_windows_are_disjoint_and_complete(interactions, kind, share):
    windows = make_windows(interactions, WindowConfig(kind=kind, label_share=share, min_label_users=1))
    everything = sorted_union(interactions)
    assert_frame_equal(sorted_union(windows.history_b, windows.labels_b), sorted_union(windows.history_c))
    assert_frame_equal(sorted_union(windows.history_c, windows.labels_c), everything)


@settings(max_examples=60, deadline=None)
@given(
    interactions=logs(),
    share=st.floats(0.05, 0.45),
    window=st.sampled_from("bc"),
    edits=st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdefg")), min_size=40, max_size=40),
)
def test_editing_rows_from_a_cut_on_changes_nothing_before_it(interactions, share, window, edits):
    config = WindowConfig(kind="time", label_share=share)
    before = make_windows(interactions, config)
    later = pl.col("timestamp") >= getattr(before, f"start_{window}")
    edited = interactions.with_columns(
        user_id=pl.when(later).then(pl.Series([user for user, _ in edits[: interactions.height]])).otherwise("user_id"),
        item_id=pl.when(later).then(pl.Series([item for _, item in edits[: interactions.height]])).otherwise("item_id"),
        weight=pl.when(later).then(9.0).otherwise("weight"),
    )
    after = make_windows(edited, config)
    assert_frame_equal(getattr(before, f"history_{window}"), getattr(after, f"history_{window}"))
    assert (before.start_b, before.start_c, before.end) == (after.start_b, after.start_c, after.end)


@settings(max_examples=60, deadline=None)
@given(interactions=logs(), kind=st.sampled_from(["time", "last"]), seed=st.integers(0, 9))
def test_permuting_rows_changes_nothing(interactions, kind, seed):
    permuted = interactions.sample(fraction=1, shuffle=True, seed=seed)
    config = WindowConfig(kind=kind)
    ours, theirs = make_windows(interactions, config), make_windows(permuted, config)
    for part in ("history_b", "labels_b", "history_c", "labels_c"):
        assert_frame_equal(getattr(ours, part), getattr(theirs, part))
    for name in ("time", "leave-last-out"):
        a, b = split(interactions, name, min_items=2), split(permuted, name, min_items=2)
        assert_frame_equal(a.train, b.train)
        assert_frame_equal(a.test, b.test)
        assert (a.test_hash, a.notes) == (b.test_hash, b.notes)


@settings(max_examples=60, deadline=None)
@given(interactions=logs())
def test_no_history_of_a_last_window_is_later_than_its_users_label(interactions):
    windows = make_windows(interactions, WindowConfig(kind="last"))
    for history, labels in ((windows.history_b, windows.labels_b), (windows.history_c, windows.labels_c)):
        assert labels["user_id"].is_unique().all()
        own = history.join(labels.select("user_id", label_time="timestamp"), on="user_id")
        assert (own["timestamp"] <= own["label_time"]).all()
        assert (own.group_by("user_id").len()["len"] >= 2).all()
        assert own["user_id"].n_unique() == labels.height


@settings(max_examples=60, deadline=None)
@given(interactions=logs(), share=st.floats(0.05, 0.9))
def test_time_split_parts_every_row_at_its_cut(interactions, share):
    result = time_split(interactions, test_share=share)
    assert (result.train["timestamp"] < result.as_of).all()
    assert (result.test["timestamp"] >= result.as_of).all()
    assert_frame_equal(sorted_union(result.train, result.test), sorted_union(interactions))
    assert result.train.height > 0


def test_moments_are_the_window_start_or_just_after_the_own_last_row():
    history = log(("v", "a", 1), ("u", "a", 2), ("v", "b", 8))
    assert moments(history, "last", None).rows() == [("u", at(3)), ("v", at(9))]
    at_once = moments(history, "time", at(20))
    assert at_once.rows() == [("u", at(20)), ("v", at(20))]
    assert at_once.schema == moments(history.clear(), "last", None).schema
    assert at_once.schema["moment"] == pl.Datetime("us", "UTC")


def test_arguments_out_of_range_are_refused():
    interactions = log(("u", "a", 0))
    with pytest.raises(InvalidConfig, match="test_share is 1; it must lie strictly between 0 and 1"):
        time_split(interactions, test_share=1)
    with pytest.raises(InvalidConfig, match="min_items is 1; it must be at least 2"):
        leave_last_out(interactions, min_items=1, repeats=True)
    with pytest.raises(InvalidConfig, match="split kind is 'weekly'; it must be"):
        split(interactions, "weekly")
    with pytest.raises(InvalidConfig, match="n_cuts is 0; it must be at least 1"):
        rolling_splits(interactions, n_cuts=0)
    with pytest.raises(InvalidConfig, match='as_of is None; windows of kind "time" need the moment'):
        moments(interactions, "time", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "weekly"}, 'windows kind is \'weekly\'; it must be "auto", "time" or "last"'),
        ({"label_share": 0.5}, "label_share is 0.5; it must lie strictly between 0 and 0.5"),
        ({"label_share": float("nan")}, "label_share is nan"),
        ({"min_label_users_share": 1.5}, r"min_label_users_share is 1.5; it must lie in \[0, 1\]"),
        ({"min_label_users": 0}, "min_label_users is 0; it must be at least 1"),
    ],
)
def test_window_config_refuses_values_out_of_range(change, message):
    with pytest.raises(InvalidConfig, match=message):
        WindowConfig(**change)


def test_an_empty_table_is_refused():
    empty = log(("u", "a", 0)).clear()
    for refuse in (
        time_split,
        end_of,
        lambda frame: leave_last_out(frame, repeats=True),
        lambda frame: make_windows(frame, WindowConfig(kind="last")),
        lambda frame: make_windows(frame, WindowConfig(kind="time")),
    ):
        with pytest.raises(InvalidData, match=r"interactions: must not be empty. Pass at least 1 row"):
            refuse(empty)
