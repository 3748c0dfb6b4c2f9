"""Off-policy estimates on a real exposure log, beside the values that they should find.

The log (complete-journey-offers) shows each household every coupon of a campaign, so a policy that shows one coupon of
each campaign has a value that can be read off. One coupon an impression is then drawn as a logging policy would have,
and the value is estimated from those rows alone. The new policy knows what the household bought before the campaign:
it shows the coupon whose text shares most with the purchases, almost always (softmax), or always (best).

Needs RECSYS_DATA: a folder with complete-journey-offers and complete-journey. Takes a minute.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from recsys.bench.off_policy import off_policy, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("RECSYS_DATA"), help="folder of the data sets (RECSYS_DATA)")
    parser.add_argument("--draws", type=int, default=200, help="logs drawn for the mean error (200)")
    parser.add_argument("--out", help="also write the numbers as JSON")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("set RECSYS_DATA or give --data")
    log = read_log(Path(arguments.data))
    results = {}
    for name, policy in policies(log).items():
        exact = off_policy(log, policy)
        print(f"== {name}: every coupon was shown (propensity 1), so this is its value\n{render(exact)}")
        truth = exact.estimates["ips"].value
        one = draw(log, 0)
        print(f"-- from one coupon an impression, drawn by a biased policy\n{render(off_policy(one, policy))}")
        found = [off_policy(draw(log, seed), policy, n_samples=1).estimates for seed in range(arguments.draws)]
        values = {estimator: np.array([one[estimator].value for one in found]) for estimator in exact.estimates}
        errors = {
            estimator: {"bias": float(value.mean() - truth), "rmse": float(np.sqrt(((value - truth) ** 2).mean()))}
            for estimator, value in values.items()
        }
        for estimator, error in errors.items():
            print(f"{estimator:6} bias {error['bias']:+.5f}  rmse {error['rmse']:.5f}  (truth {truth:.5f})")
        results[name] = {"exact": asdict(exact), "errors": errors}
        print()
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def read_log(folder: Path) -> pl.DataFrame:
    """Shown coupons, `reward`, `propensity` 1, and `match`: how many of a household's latest kinds a coupon names."""
    offers = folder / "complete-journey-offers"
    shown = pl.read_parquet(offers / "impressions.parquet").with_columns(reward=pl.col("clicked"), propensity=1.0)
    coupons = pl.read_parquet(offers / "items.parquet").select("item_id", coupon=words())
    products = pl.read_parquet(folder / "complete-journey" / "items.parquet").select("item_id", product=words())
    bought = pl.read_parquet(
        folder / "complete-journey" / "interactions.parquet", columns=["user_id", "item_id", "timestamp"]
    )
    bought = bought.join(products, on="item_id").select("user_id", "timestamp", word="product").explode("word")
    impressions = shown.select("impression_id", "user_id", start="timestamp").unique()
    counts = (
        impressions.join(bought, on="user_id")
        .filter(pl.col("timestamp") < pl.col("start"))
        .group_by("impression_id", "word")
        .agg(n=pl.len())
    )
    named = shown.join(coupons, on="item_id").select("impression_id", "item_id", word="coupon").explode("word")
    match = (
        named.join(counts, on=["impression_id", "word"])
        .group_by("impression_id", "item_id")
        .agg(match=(1 + pl.col("n")).log().mean())
    )
    return shown.join(match, on=["impression_id", "item_id"], how="left").with_columns(pl.col("match").fill_null(0.0))


def words() -> pl.Expr:
    return pl.col("title").str.to_lowercase().str.extract_all(r"\p{L}{3,}").list.unique()


def policies(log: pl.DataFrame) -> dict[str, pl.DataFrame]:
    within = pl.col("impression_id")
    strength = (3 * (pl.col("match") - pl.col("match").max().over(within))).exp()
    best = pl.struct(-pl.col("match"), "item_id").rank("ordinal").over(within) == 1
    return {
        "softmax": log.select(within, "item_id", probability=strength / strength.sum().over(within)),
        "best": log.filter(best).select(within, "item_id", probability=1.0),
        "uniform": log.select(within, "item_id", probability=1 / pl.len().over(within)),
    }


def draw(log: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One row an impression, the chance grows with a coupon's place in its campaign (1 : 2 : 3 ...)."""
    rank = pl.col("item_id").rank("ordinal").over("impression_id")
    share = rank / rank.sum().over("impression_id")
    rows = log.with_columns(propensity=share).sort("impression_id", "item_id")
    clock = np.random.default_rng(seed).exponential(size=rows.height)
    return (
        rows.with_columns(clock=pl.Series(clock) / pl.col("propensity"))
        .filter(pl.col("clock") == pl.col("clock").min().over("impression_id"))
        .drop("clock")
    )


if __name__ == "__main__":
    main()
