"""Behavioural features as of a moment, one implementation for training and for serving.

Owns counts, recency and affinities. Every number is computed from the history frame handed in, which must hold
nothing at or after the moment: the caller cuts (and `build_features` refuses a history that was cut too late).
Scores of stage 1 and of the interest model are columns of the pairs already.
"""

from dataclasses import dataclass

import polars as pl

DAY = 86_400.0
USER, ITEM = "user_row", "item_row"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """Which windows are counted.

    Attributes:
        windows_days: lengths of the windows before the moment, in days, ascending.
    """

    windows_days: tuple[int, ...] = (7, 30, 90)

    def __post_init__(self) -> None:
        if not self.windows_days or min(self.windows_days) < 1:
            raise ValueError(f"features: windows_days={self.windows_days} must be positive whole days")
        if list(self.windows_days) != sorted(set(self.windows_days)):
            raise ValueError(f"features: windows_days={self.windows_days} must ascend without repetition")


def item_statistics(history: pl.DataFrame, groups: pl.DataFrame, moment: float, config: FeatureConfig) -> pl.DataFrame:
    """What all users together did with each item before the moment.

    Args:
        history: `user_row`, `item_row`, `seconds` (Float64, Unix time) of all users.
        groups: `item_row` and group keys of every item (`text`, and any others; Int32), one row an item.
        moment: Unix seconds; every history row lies before it.
        config: windows.

    Returns:
        One row an item: `item_row` and Float32 columns `item_*` and `<group>_popularity`. Items without history have
        counts of zero and null recency.

    Raises:
        ValueError: a history row lies at or after the moment.
    """
    late = history.filter(pl.col("seconds") >= moment)
    if late.height:
        raise ValueError(
            f"features: {late.height} history rows lie at or after the moment {moment}, first: "
            f"{late.row(0, named=True)}; cut the history before the moment"
        )
    age = (moment - pl.col("seconds")) / DAY
    counts = history.group_by(ITEM).agg(
        item_count=pl.len(),
        item_users=pl.col(USER).n_unique(),
        item_days_since_last=age.min(),
        item_days_since_first=age.max(),
        **{f"item_count_{days}d": (age <= days).sum() for days in config.windows_days},
    )
    short, long = config.windows_days[0], config.windows_days[-1]
    table = groups.join(counts, on=ITEM, how="left").with_columns(
        pl.col("item_count", "item_users").fill_null(0),
        *(pl.col(f"item_count_{days}d").fill_null(0) for days in config.windows_days),
    )
    keys = [name for name in groups.columns if name != ITEM]
    return table.with_columns(
        item_repeat_rate=pl.col("item_count") / pl.col("item_users"),
        item_trend=(pl.col(f"item_count_{short}d") + 1) / (pl.col(f"item_count_{long}d") + 1),
        item_share_of_text=pl.col("item_count") / pl.col("item_count").sum().over("text"),
        **{f"{key}_popularity": pl.col("item_count").sum().over(key) for key in keys},
    ).select(ITEM, *keys, pl.exclude(ITEM, *keys).cast(pl.Float32).fill_nan(None))


def build_features(
    pairs: pl.DataFrame,
    history: pl.DataFrame,
    statistics: pl.DataFrame,
    moments: pl.DataFrame,
    config: FeatureConfig,
) -> pl.DataFrame:
    """Add behavioural features to (user, item) pairs.

    Args:
        pairs: `user_row`, `item_row` and any further columns, which stay as they are.
        history: `user_row`, `item_row`, `seconds` of the pairs' users, all before each user's moment.
        statistics: from `item_statistics`, one row for every item of the pairs and the history.
        moments: `user_row`, `moment` (Float64, Unix seconds), one row for every user of the pairs.
        config: windows.

    Returns:
        The pairs in their order with Float32 columns `pair_*`, `user_*`, `item_*` and `<group>_*` added; null where
        there is nothing to count from.

    Raises:
        ValueError: a history row lies at or after its user's moment.
    """
    keys = [name for name in statistics.columns if statistics.schema[name] == pl.Int32 and name != ITEM]
    aged = history.join(moments, on=USER).with_columns(age=(pl.col("moment") - pl.col("seconds")) / DAY)
    late = aged.filter(pl.col("age") <= 0)
    if late.height:
        raise ValueError(
            f"features: {late.height} history rows lie at or after their user's moment, first: "
            f"{late.row(0, named=True)}; cut the history before the moment"
        )
    aged = aged.join(statistics.select(ITEM, *keys), on=ITEM, how="left")
    table = pairs.with_row_index("_order").join(statistics, on=ITEM, how="left")
    table = table.join(_pair_features(aged, config), on=[USER, ITEM], how="left")
    table = table.join(_user_features(aged, config), on=USER, how="left")
    for key in keys:
        table = table.join(_affinity(aged, key), on=[USER, key], how="left")
    table = table.with_columns(
        pl.col("pair_count", "pair_days", *(f"pair_count_{days}d" for days in config.windows_days)).fill_null(0),
        *(pl.col(f"user_{key}_count").fill_null(0) for key in keys),
    ).with_columns(
        pair_overdue=pl.col("pair_days_since_last") / pl.col("pair_interval"),
        pair_share=pl.col("pair_count") / pl.col("user_events"),
        **{f"user_{key}_share": pl.col(f"user_{key}_count") / pl.col("user_events") for key in keys},
    )
    added = [name for name in table.columns if name not in pairs.columns and name != "_order"]
    return table.sort("_order").select(
        *pairs.columns, *(pl.col(name).cast(pl.Float32) for name in added if name not in keys)
    )


def feature_names(frame: pl.DataFrame, *, exclude: tuple[str, ...]) -> list[str]:
    """Names of the columns a ranker may read: everything numeric or boolean that is not excluded."""
    numeric = [name for name, dtype in frame.schema.items() if dtype.is_numeric() or dtype == pl.Boolean]
    return [name for name in numeric if name not in exclude]


def _pair_features(aged: pl.DataFrame, config: FeatureConfig) -> pl.DataFrame:
    """What the user did with this very item."""
    day = (pl.col("seconds") / DAY).floor()
    frame = aged.group_by(USER, ITEM).agg(
        pair_count=pl.len(),
        pair_days=day.n_unique(),
        pair_days_since_last=pl.col("age").min(),
        pair_days_since_first=pl.col("age").max(),
        **{f"pair_count_{days}d": (pl.col("age") <= days).sum() for days in config.windows_days},
    )
    span = pl.col("pair_days_since_first") - pl.col("pair_days_since_last")
    return frame.with_columns(pair_interval=pl.when(pl.col("pair_days") > 1).then(span / (pl.col("pair_days") - 1)))


def _user_features(aged: pl.DataFrame, config: FeatureConfig) -> pl.DataFrame:
    """How active the user is and how often he repeats."""
    day = (pl.col("seconds") / DAY).floor()
    return (
        aged.group_by(USER)
        .agg(
            user_events=pl.len(),
            user_items=pl.col(ITEM).n_unique(),
            user_days=day.n_unique(),
            user_days_since_last=pl.col("age").min(),
            user_days_since_first=pl.col("age").max(),
            **{f"user_events_{days}d": (pl.col("age") <= days).sum() for days in config.windows_days},
        )
        .with_columns(
            user_repeat_share=1 - pl.col("user_items") / pl.col("user_events"),
            user_events_per_day=pl.col("user_events") / pl.col("user_days"),
        )
    )


def _affinity(aged: pl.DataFrame, key: str) -> pl.DataFrame:
    """What the user did with items of the same group."""
    return aged.group_by(USER, key).agg(
        **{f"user_{key}_count": pl.len(), f"user_{key}_days_since_last": pl.col("age").min()}
    )
