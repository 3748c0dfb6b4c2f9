"""What a policy would have earned, estimated from what another one showed: IPS, SNIPS, doubly robust.

Owns the estimators, their intervals and their warnings. It fits no recommender: the new policy comes as a table of
probabilities. Values are rewards per shown item, so that policies which show different numbers of items compare;
for single items that is the reward per impression.

With w = p(item | impression; new policy) / p(item | impression; logging policy) for every logged row, r its reward and
m the number of items that the new policy shows in an impression (the sum of its probabilities):

    IPS    sum(w r) / sum(m)                                       Horvitz and Thompson 1952
    SNIPS  sum(w r) / sum(w)                                       Swaminathan and Joachims 2015, equation 8
    DR     (sum(p q) over the new policy's items + sum(w (r - q)) over logged rows) / sum(m)
                                                                   Dudík, Langford and Li 2011, equation 3

q is the shrunk mean reward of an item, learnt from other users than the one it is used for. With several items in an
impression each place is weighted by itself (the item-position model of Li et al. 2018, "Offline evaluation of ranking
policies with click models"): what stands beside an item must not change its reward.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import InvalidConfig, InvalidData

FloatArray = npt.NDArray[np.float64]

FOLDS = 5
SHRINKAGE = 20.0  # rows at the overall mean that an item's mean reward starts from
MIN_SAMPLE = 100  # effective rows below which an interval is no basis for a decision
MIN_SHARE = 0.05
ROUNDING = 1e-9  # of a mean of weights: sums differ in the last bits from processor to processor
MAX_SHARE = 0.1  # of the whole weight on one row
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """Reward per shown item, with the ends of its 95% bootstrap interval over users; and the same minus the log's."""

    value: float
    low: float
    high: float
    lift: float
    lift_low: float
    lift_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyReport:
    """What the log says about a new policy.

    Attributes:
        logged: reward per shown item of the logging policy.
        estimates: by name: "ips", "snips", "dr".
        n_impressions: of the log.
        n_rows: shown items.
        n_users: what the bootstrap draws; impressions where the log names no users.
        shown_logged: items per impression in the log.
        shown_new: items per impression under the new policy.
        effective_rows: (sum w)^2 / sum(w^2), Kong 1992: so many rows shown by the new policy itself would say as much.
        effective_share: of all rows.
        mean_weight: sum(w) / sum(m): near 1 where every item of the new policy could have been shown.
        max_weight: the largest w.
        max_weight_share: of the whole weight on the row that has most.
        n_clipped: rows whose weight was cut.
        warnings: why the numbers are not to be relied on; empty is good.
    """

    logged: float
    estimates: dict[str, Value]
    n_impressions: int
    n_rows: int
    n_users: int
    shown_logged: float
    shown_new: float
    effective_rows: float
    effective_share: float
    mean_weight: float
    max_weight: float
    max_weight_share: float
    n_clipped: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return asdict(self)


def off_policy(
    log: pl.DataFrame,
    policy: pl.DataFrame,
    *,
    clip: float | None = None,
    n_samples: int = 1000,
    seed: int = 0,
) -> OffPolicyReport:
    """Estimate the value of a policy from a log of another one.

    Args:
        log: one row a shown item: `impression_id`, `item_id`, `reward` (number or Boolean), `propensity` in (0, 1]: the
            probability that the logging policy showed this item in this impression. `user_id` where there is one.
        policy: `impression_id`, or `user_id` for all of a user's impressions; `item_id`; `probability` in [0, 1] that
            the new policy shows the item. Every item that it may show, whether logged or not.
        clip: largest weight; bounds the variance and brings a bias. None for no limit.
        n_samples: of the bootstrap.
        seed: of the bootstrap and of the folds of q.

    Raises:
        InvalidData: a column is missing or out of range, an item stands twice in an impression, or the policy says
            nothing about an impression.
        InvalidConfig: `clip` or `n_samples` is out of range.
    """
    if clip is not None and clip <= 0:
        raise InvalidConfig(f"clip is {clip}; it must be positive")
    if n_samples < 1:
        raise InvalidConfig(f"n_samples is {n_samples}; it must be at least 1")
    shown, key = _check_log(log), "impression_id" if "impression_id" in policy.columns else "user_id"
    new = _check_policy(policy, shown, key)
    shown = shown.join(new, on=[key, "item_id"], how="left", maintain_order="left").with_columns(
        weight=pl.col("probability").fill_null(0.0) / pl.col("propensity")
    )
    n_clipped = 0 if clip is None else shown.filter(pl.col("weight") > clip).height
    if clip is not None:
        shown = shown.with_columns(pl.col("weight").clip(upper_bound=clip))
    sums = _user_sums(shown, new, key, seed)
    return _report(shown, sums, n_clipped, n_samples, seed)


def render(report: OffPolicyReport) -> str:
    """The report as aligned text."""
    lines = [
        f"{report.n_impressions:,} impressions of {report.n_users:,} users, {report.n_rows:,} shown items "
        f"({report.shown_logged:.1f} an impression; the new policy shows {report.shown_new:.1f})",
        f"logging policy: {report.logged:.5f} per shown item",
        "",
        f"{'new policy':12}{'value':>10}{'95% interval':>22}{'minus the log':>16}{'95% interval':>24}",
    ]
    lines += [
        f"{name.upper():12}{found.value:10.5f}{f'{found.low:.5f} to {found.high:.5f}':>22}"
        f"{found.lift:+16.5f}{f'{found.lift_low:+.5f} to {found.lift_high:+.5f}':>24}"
        for name, found in report.estimates.items()
    ]
    lines += [
        "",
        f"effective rows: {report.effective_rows:,.0f} of {report.n_rows:,} ({report.effective_share:.1%}); mean "
        f"weight {report.mean_weight:.3f}, largest {report.max_weight:.1f} ({report.max_weight_share:.1%} of all)",
        *(f"WARNING: {warning}" for warning in report.warnings),
    ]
    return "\n".join(lines) + "\n"


def _check_log(log: pl.DataFrame) -> pl.DataFrame:
    _need(log, ("impression_id", "item_id", "reward", "propensity"), "log")
    if log.is_empty():
        raise InvalidData(table="log", rule="must not be empty", remedy="pass at least one shown item")
    users = pl.col("user_id" if "user_id" in log.columns else "impression_id").alias("user_id")
    kept = log.select(
        users,
        "impression_id",
        "item_id",
        pl.col("reward").cast(pl.Float64, strict=False),
        pl.col("propensity").cast(pl.Float64, strict=False),
    )
    _refuse(kept, ~pl.col("reward").is_finite().fill_null(value=False), "log", "reward", "must be a finite number")
    share = pl.col("propensity")
    bad = ~((share > 0) & (share <= 1)).fill_null(value=False)
    _refuse(kept, bad, "log", "propensity", "is the probability of having been shown, it must lie in (0, 1]")
    twice = pl.struct("impression_id", "item_id").is_duplicated()
    _refuse(kept, twice, "log", "item_id", "an item must stand once in an impression")
    divided = pl.col("user_id").n_unique().over("impression_id") > 1
    _refuse(kept, divided, "log", "impression_id", "an impression must belong to one user")
    return kept.sort("user_id", "impression_id", "item_id")


def _check_policy(policy: pl.DataFrame, shown: pl.DataFrame, key: str) -> pl.DataFrame:
    _need(policy, (key, "item_id", "probability"), "policy")
    new = policy.select(key, "item_id", pl.col("probability").cast(pl.Float64, strict=False))
    share = pl.col("probability")
    bad = ~((share >= 0) & (share <= 1 + 1e-9)).fill_null(value=False)
    _refuse(new, bad, "policy", "probability", "must lie in [0, 1]")
    _refuse(new, pl.struct(key, "item_id").is_duplicated(), "policy", "item_id", f"an item must stand once in a {key}")
    for name in (key, "item_id"):
        if policy[name].dtype != shown[name].dtype:
            raise InvalidData(
                table="policy",
                column=name,
                rule=f"is {policy[name].dtype}, in the log it is {shown[name].dtype}",
                remedy="give ids in the same type",
            )
    silent = shown.join(new.filter(share > 0), on=key, how="anti")["impression_id"].unique().sort()
    if len(silent):
        raise InvalidData(
            table="policy",
            rule="must say for every impression of the log what it would show",
            count=len(silent),
            total=shown["impression_id"].n_unique(),
            rows=silent.to_list(),
            remedy="add rows for these, or leave them out of the log",
        )
    return new


def _need(table: pl.DataFrame, columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InvalidData(
            table=name,
            column=missing[0],
            rule=f"the required column is missing; there are: {', '.join(table.columns)}",
            remedy="see the page about off-policy estimates for what each column holds",
        )


def _refuse(table: pl.DataFrame, bad: pl.Expr, name: str, column: str, rule: str) -> None:
    rows = table.filter(bad)
    if rows.height:
        raise InvalidData(
            table=name,
            column=column,
            rule=rule,
            count=rows.height,
            total=table.height,
            rows=rows.head(5).rows(),
            remedy="correct these rows or leave them out",
        )


def _user_sums(shown: pl.DataFrame, new: pl.DataFrame, key: str, seed: int) -> FloatArray:
    """(n_users, 6): sums of w r, w, m, the doubly robust sum, r and rows, in the order of users."""
    fold = shown.select(pl.col("user_id").unique().sort()).with_columns(
        fold=pl.Series(np.random.default_rng(seed).integers(FOLDS, size=shown["user_id"].n_unique()))
    )
    shown = shown.join(fold, on="user_id", how="left", maintain_order="left")
    model = _reward_model(shown)
    base = shown["reward"].mean()
    on = ["item_id", "fold"]
    logged = shown.join(model, on=on, how="left", maintain_order="left").with_columns(pl.col("q").fill_null(base))
    mine = logged.group_by("user_id").agg(
        wr=(pl.col("weight") * pl.col("reward")).sum(),
        w=pl.col("weight").sum(),
        corrected=(pl.col("weight") * (pl.col("reward") - pl.col("q"))).sum(),
        r=pl.col("reward").sum(),
        rows=pl.len().cast(pl.Float64),
    )
    impressions = shown.select("user_id", "impression_id", "fold").unique()
    expected = (
        impressions.join(new, on=key, how="inner")
        .join(model, on=on, how="left")
        .with_columns(pl.col("q").fill_null(base))
        .group_by("user_id")
        .agg(m=pl.col("probability").sum(), direct=(pl.col("probability") * pl.col("q")).sum())
    )
    return (
        mine.join(expected, on="user_id")
        .sort("user_id")
        .select("wr", "w", "m", pl.col("direct") + pl.col("corrected"), "r", "rows")
        .to_numpy()
    )


def _reward_model(shown: pl.DataFrame) -> pl.DataFrame:
    """`item_id`, `fold`, `q`: an item's mean reward over the rows of all other folds, shrunk to their mean."""
    total = shown.group_by("item_id").agg(rewards=pl.col("reward").sum(), rows=pl.len())
    within = shown.group_by("item_id", "fold").agg(mine=pl.col("reward").sum(), my_rows=pl.len())
    by_fold = shown.group_by("fold").agg(fold_rewards=pl.col("reward").sum(), fold_rows=pl.len())
    base = (shown["reward"].sum() - pl.col("fold_rewards")) / (shown.height - pl.col("fold_rows")).clip(1)
    rewards = pl.col("rewards") - pl.col("mine").fill_null(0.0)
    rows = pl.col("rows") - pl.col("my_rows").fill_null(0)
    return (
        total.join(by_fold.with_columns(base=base), how="cross")
        .join(within, on=["item_id", "fold"], how="left")
        .select("item_id", "fold", q=(rewards + SHRINKAGE * pl.col("base")) / (rows + SHRINKAGE))
    )


def _values(sums: FloatArray) -> FloatArray:
    """(..., 6) sums to (..., 4): IPS, SNIPS, DR and the log's value."""
    wr, w, m, dr, r, rows = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        snips = np.where(w > 0, wr / w, 0.0)
    return np.stack([wr / m, snips, dr / m, r / rows], axis=-1)


def _report(shown: pl.DataFrame, sums: FloatArray, n_clipped: int, n_samples: int, seed: int) -> OffPolicyReport:
    found = _values(sums.sum(axis=0))
    drawn = _values(_resampled(sums, n_samples, seed))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    lift_low, lift_high = np.quantile(drawn - drawn[:, 3:], [0.025, 0.975], axis=0)
    weight = shown["weight"].to_numpy()
    total, squares = float(weight.sum()), float((weight**2).sum())
    effective = total**2 / squares if squares else 0.0
    n_impressions = shown["impression_id"].n_unique()
    report = OffPolicyReport(
        logged=float(found[3]),
        estimates={
            name: Value(
                value=float(found[place]),
                low=float(low[place]),
                high=float(high[place]),
                lift=float(found[place] - found[3]),
                lift_low=float(lift_low[place]),
                lift_high=float(lift_high[place]),
            )
            for place, name in enumerate(("ips", "snips", "dr"))
        },
        n_impressions=n_impressions,
        n_rows=shown.height,
        n_users=len(sums),
        shown_logged=shown.height / n_impressions,
        shown_new=float(sums[:, 2].sum()) / n_impressions,
        effective_rows=effective,
        effective_share=effective / shown.height,
        mean_weight=total / float(sums[:, 2].sum()),
        max_weight=float(weight.max()),
        max_weight_share=float(weight.max()) / total if total else 0.0,
        n_clipped=n_clipped,
        warnings=(),
    )
    weights_of = _resampled(sums, n_samples, seed)[:, 1:3]
    return _with_warnings(report, np.quantile(weights_of[:, 0] / weights_of[:, 1], [0.005, 0.995]), shown)


def _resampled(sums: FloatArray, n_samples: int, seed: int) -> FloatArray:
    """(n_samples, 6): sums over users drawn with replacement."""
    rng, n = np.random.default_rng(seed), len(sums)
    block = max(1, _BLOCK // n)
    parts = [
        rng.multinomial(n, np.full(n, 1 / n), size=min(block, n_samples - start)) @ sums
        for start in range(0, n_samples, block)
    ]
    return np.concatenate(parts)


def _with_warnings(report: OffPolicyReport, mean_weight: FloatArray, shown: pl.DataFrame) -> OffPolicyReport:
    found = []
    if report.effective_rows < MIN_SAMPLE or report.effective_share < MIN_SHARE:
        found.append(
            f"little overlap: the log says as much as {report.effective_rows:,.0f} rows of the new policy would "
            f"({report.effective_share:.1%} of its rows; wanted: {MIN_SAMPLE} and {MIN_SHARE:.0%}). Explore more, or "
            "judge a policy that is nearer to the logged one."
        )
    low, high = mean_weight[0] - ROUNDING, mean_weight[1] + ROUNDING
    if not low <= 1 <= high and not report.n_clipped:
        found.append(
            f"the weights have the mean {report.mean_weight:.3f} where 1 is expected: the new policy shows items that "
            "the logging policy could not, or the propensities are wrong. IPS is biased; SNIPS and DR fill the gap "
            "with what is known about other items."
        )
    if report.max_weight_share > MAX_SHARE:
        found.append(f"one row carries {report.max_weight_share:.0%} of the whole weight; clip, or log more.")
    n_rewarded = shown.filter((pl.col("weight") > 0) & (pl.col("reward") != 0)).height
    if n_rewarded < 30:
        found.append(f"only {n_rewarded} rewarded rows have weight under the new policy; the intervals are too narrow.")
    if report.n_clipped:
        found.append(f"{report.n_clipped:,} weights were clipped: the estimates lean towards the logging policy.")
    values = {name: getattr(report, name) for name in report.__slots__}
    return OffPolicyReport(**{**values, "warnings": tuple(found)})


def command(arguments: argparse.Namespace) -> int:
    """Run `recsys-bench off-policy`."""
    from recsys.bench.result import as_json
    from recsys.schema import read_table

    log, policy = read_table(arguments.log, "log"), read_table(arguments.policy, "policy")
    if arguments.reward != "reward":
        _need(log, (arguments.reward,), "log")
        log = log.with_columns(reward=pl.col(arguments.reward))
    if arguments.propensity is not None:
        if "propensity" in log.columns:
            raise InvalidConfig("the log has a column propensity; --propensity is for logs without it")
        log = log.with_columns(propensity=pl.lit(arguments.propensity))
    report = off_policy(log, policy, clip=arguments.clip, n_samples=arguments.samples, seed=arguments.seed)
    print(as_json(report.to_dict()) if arguments.json else render(report), end="")
    return 0
