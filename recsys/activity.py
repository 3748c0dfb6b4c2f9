"""Who comes back: the probability that a user has any event within a horizon after a moment.

Owns the features of users, the cut-offs that are learnt from, and the rule that features lie strictly before their
cut-off and labels at or after it. Needs nothing of a fit but its events.
"""

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from ranking.probability import HeadConfig, ProbabilityHead
from recsys.errors import InvalidConfig
from recsys.probability_report import ProbabilityReport, best_threshold, report

DAY = 86_400.0
UNITS = {"h": 3_600.0, "d": DAY, "w": 7 * DAY}
WINDOWS = (1, 2, 4, 8, 16)  # of one horizon each
MAX_CUTS = 12
MAX_USERS = 20_000
MIN_USERS = 20  # with an event in the horizon, and as many without, at every stage
VALIDATION_EVERY = 6  # one user in six of the training cut-offs ends the training early
HORIZONS_NEEDED = 4  # history, training, calibration, report


@dataclass(frozen=True, slots=True)
class ActivityModel:
    """A calibrated head over features of users.

    Attributes:
        head: LightGBM and its calibration.
        seconds: length of the horizon.
        report: measured on the newest cut-off, one horizon before the end.
    """

    head: ProbabilityHead
    seconds: float
    report: ProbabilityReport

    @classmethod
    def learn(cls, events: pl.DataFrame, as_of: float, horizon: str, config: HeadConfig, *, seed: int) -> Self:
        """Train on up to twelve cut-offs, calibrate on the next, measure on the last; they lie one horizon apart.

        Args:
            events: `user_id`, `item_row`, `seconds` (Unix time), `event_row`; rows at or after `as_of` are not read.
            as_of: Unix seconds, the end of the last horizon.
            horizon: such as "12h", "7d" or "2w".
            config: of the head.
            seed: of the head and of the users, where there are more than 20,000.

        Raises:
            InvalidConfig: `horizon` is malformed, the events cover less than four horizons, or nearly all users or
                nearly none have an event within it.
        """
        seconds = horizon_seconds(horizon)
        known = _some_users(events.filter(pl.col("seconds") < as_of), seed)
        cuts = cut_offs(known, as_of, horizon)
        newest, later = (labelled(known, cut, seconds) for cut in cuts[:2])
        past = pl.concat([labelled(known, cut, seconds) for cut in cuts[2:]])
        for name, rows in (("report", newest), ("calibration", later), ("training", past)):
            _check_users(rows, name, horizon)
        names = [name for name in past.columns if name not in ("user_id", "user_row", "label", "weight")]
        held_out = pl.col("user_row") % VALIDATION_EVERY == 0
        head = ProbabilityHead(config, seed=seed).fit(past.filter(~held_out), past.filter(held_out), names)
        head.calibrate(later)
        return cls(head, seconds, _measure(head, later, newest, horizon))

    def predict(self, events: pl.DataFrame, users: pl.Series, as_of: float) -> pl.DataFrame:
        """`user_id`, `probability` of users with events before the moment, in the order of `users`."""
        asked = users.alias("user_id").to_frame()
        features = activity_features(events.join(asked, on="user_id", how="semi"), as_of, self.seconds)
        features = features.with_columns(probability=pl.Series(self.head.predict(features), dtype=pl.Float64))
        return asked.join(features, on="user_id", maintain_order="left").select("user_id", "probability")


def horizon_seconds(horizon: str) -> float:
    """Length of "12h", "7d" or "2w" in seconds.

    Raises:
        InvalidConfig: it is spelt otherwise, or zero.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", horizon) if isinstance(horizon, str) else None
    if found is None:
        raise InvalidConfig(
            f'horizon={horizon!r} must be a whole number and one of h, d, w: hours, days, weeks, such as "7d"'
        )
    return int(found[1]) * UNITS[found[2]]


def cut_offs(events: pl.DataFrame, as_of: float, horizon: str) -> list[float]:
    """Moments one horizon apart, newest first: report, calibration, then up to twelve to learn from.

    At least one horizon of history lies before each.

    Raises:
        InvalidConfig: the events cover less than four horizons.
    """
    seconds = horizon_seconds(horizon)
    start = events["seconds"].min()
    covered = 0.0 if start is None else as_of - float(start)  # type: ignore[arg-type]
    if covered < HORIZONS_NEEDED * seconds:
        raise InvalidConfig(
            f"horizon={horizon!r}: the interactions cover {covered / DAY:.1f} days and it needs "
            f"{HORIZONS_NEEDED * seconds / DAY:.1f}: one horizon each for history, training, calibration and report; "
            "choose a shorter one or fit on a longer time"
        )
    n_cuts = min(int(covered / seconds) - 1, MAX_CUTS + 2)
    return [as_of - place * seconds for place in range(1, n_cuts + 1)]


def labelled(events: pl.DataFrame, cut: float, seconds: float) -> pl.DataFrame:
    """Features of all users with events before the cut-off, `label` (1: an event in the horizon after it), `weight`."""
    inside = events.filter((pl.col("seconds") >= cut) & (pl.col("seconds") < cut + seconds))
    back = inside.select("user_id").unique().with_columns(label=pl.lit(1, dtype=pl.Int8))
    rows = activity_features(events, cut, seconds).join(back, on="user_id", how="left", maintain_order="left")
    return rows.with_columns(pl.col("label").fill_null(0), weight=pl.lit(1.0))


def activity_features(events: pl.DataFrame, moment: float, seconds: float) -> pl.DataFrame:
    """What is known of each user strictly before a moment.

    Args:
        events: `user_id`, `item_row`, `seconds`, `event_row`, and `user_row` where the caller numbered the users.
        moment: Unix seconds; rows at or after it are not read.
        seconds: length of the horizon, which is also the unit of the windows.

    Returns:
        One row a user with events, sorted by `user_id`: recency, tenure, counts in windows, gaps between active days
        and how regular they are, trend, share of the horizons with events, and share of each kind of event.
    """
    keys = [name for name in ("user_id", "user_row") if name in events.columns]
    past = events.filter(pl.col("seconds") < moment).with_columns(age=(moment - pl.col("seconds")) / seconds)
    past = past.with_columns(day=((moment - pl.col("seconds")) / DAY).floor(), period=pl.col("age").floor())
    counts = past.group_by(keys).agg(
        recency=pl.col("age").min(),
        tenure=pl.col("age").max(),
        n_events=pl.len(),
        n_items=pl.col("item_row").n_unique(),
        n_periods=pl.col("period").n_unique(),
        n_recent_periods=pl.col("period").filter(pl.col("period") < 8).n_unique(),
        kind_mean=pl.col("event_row").mean(),
        first_kind_share=(pl.col("event_row") == 0).mean(),
        newest_kind=pl.col("event_row").sort_by("age").first(),
        **{f"n_events_{length}": (pl.col("age") <= length).sum() for length in WINDOWS},
    )
    table = counts.join(_gaps(past), on="user_id", how="left").with_columns(
        recency_days=pl.col("recency") * seconds / DAY,
        period_share=pl.col("n_periods") / (pl.col("tenure").floor() + 1),
        events_per_day=pl.col("n_events") / pl.col("n_days"),
        repeat_share=1 - pl.col("n_items") / pl.col("n_events"),
        trend=(pl.col("n_events_1") + 1) / (pl.col("n_events_4") + 1),
        long_trend=(pl.col("n_events_4") + 1) / (pl.col("n_events_16") + 1),
    )
    table = table.with_columns(
        overdue=pl.col("recency_days") / pl.col("gap_mean"),
        regularity=pl.col("gap_deviation") / pl.col("gap_mean"),
    )
    return table.sort("user_id").select(*keys, pl.exclude(keys).cast(pl.Float32))


def _gaps(past: pl.DataFrame) -> pl.DataFrame:
    """Days between active days."""
    days = past.select("user_id", "day").unique().sort("user_id", "day")
    gap = pl.col("day").diff()
    return days.group_by("user_id").agg(
        n_days=pl.len(),
        gap_mean=gap.mean(),
        gap_deviation=gap.std(),
        gap_longest=gap.max(),
        gap_newest=gap.get(1, null_on_oob=True),
        **{f"n_days_{length}d": (pl.col("day") < length).sum() for length in (7, 28, 91)},
    )


def _some_users(events: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Events with `user_row`, of at most `MAX_USERS` users drawn at random."""
    users = events.select(pl.col("user_id").unique().sort())
    if users.height > MAX_USERS:
        users = users.sample(MAX_USERS, seed=seed).sort("user_id")
    return events.join(users.with_row_index("user_row"), on="user_id")


def _check_users(rows: pl.DataFrame, name: str, horizon: str) -> None:
    back = int(rows["label"].sum())
    if min(back, rows.height - back) < MIN_USERS:
        raise InvalidConfig(
            f"horizon={horizon!r}: {back} of the {rows.height} {name} rows have an event within it; at least "
            f"{MIN_USERS} with and {MIN_USERS} without one are needed; choose another horizon"
        )


def _measure(head: ProbabilityHead, later: pl.DataFrame, newest: pl.DataFrame, horizon: str) -> ProbabilityReport:
    columns = [rows["label"].cast(pl.Float64).to_numpy() for rows in (later, newest)]
    threshold = best_threshold(columns[0], head.predict(later), np.ones(later.height))
    return report(
        columns[1],
        head.predict(newest),
        np.ones(newest.height),
        n_users=newest.height,
        threshold=threshold,
        method=head.method,
        horizon=f"any event within {horizon}",
    )
