"""For whom: the same metrics on parts of the users and of the pairs, and how unequally groups are treated.

Owns the parts. A part of the pairs (warm and cold items, popularity, a column of the items) keeps a user's pairs of
that part as his truth; a part of the users (length of history, a column of the users) keeps all pairs of some users.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from recsys import metrics
from recsys.bench.protocols import Cut, Prepared
from recsys.bench.result import Estimate, Fairness, Segment
from recsys.bench.systems import Answers

HISTORY_BANDS = (1, 5, 10, 20, 50)
MAX_VALUES = 12
MAX_COLUMNS = 6
NOT_GROUPS = ("item_id", "user_id", "title", "description", "created_at", "price")
POPULARITY = "item popularity"


def measure_segments(
    prepared: Prepared, answers: Sequence[Answers], protocol: str, *, n_samples: int, cold_users: bool = False
) -> tuple[tuple[Segment, ...], tuple[Fairness, ...]]:
    """Metrics of every part, and the fairness rows, of one protocol over all cuts.

    Args:
        prepared: tables, cuts, k and seed.
        answers: of this protocol.
        protocol: its name.
        n_samples: of the bootstrap.
        cold_users: whether nobody has a history, which makes bands of its length pointless.
    """
    systems = list(dict.fromkeys(answer.system for answer in answers))
    if not systems:
        return (), ()
    pairs = pl.concat([_pairs(prepared, cut, protocol) for cut in prepared.cuts])
    places = {system: _places(prepared, [a for a in answers if a.system == system], pairs) for system in systems}
    user_parts = [*([] if cold_users else ["history length"]), *user_columns(prepared)]
    found: list[Segment] = []
    for segment in ("items", POPULARITY, *item_columns(prepared), *user_parts):
        values = pairs[segment].drop_nulls().unique().sort().to_list()
        for value in values:
            found += _segment(segment, value, pairs, places, prepared, n_samples)
    gaps = [row for segment in user_parts for row in _gaps(segment, found, systems, prepared.k)]
    exposure = [
        row for segment in (POPULARITY, *item_columns(prepared)) for row in _exposure(segment, prepared, answers)
    ]
    return tuple(found), (*gaps, *exposure)


def user_columns(prepared: Prepared) -> list[str]:
    """Names of segments made of the users' columns with few values, such as "user: country"."""
    users = prepared.tables.users
    return [] if users is None else [f"user: {name}" for name in _groups(users, prepared)]


def item_columns(prepared: Prepared) -> list[str]:
    """Names of segments made of the items' columns with few values, such as "item: brand"."""
    return [f"item: {name}" for name in _groups(prepared.tables.items, prepared)]


def item_parts(prepared: Prepared, cut: Cut) -> pl.DataFrame:
    """`item_id`, "items", "item popularity" and the items' columns, as strings; one row an item."""
    items = prepared.tables.items
    counts = cut.split.train.group_by("item_id").agg(n=pl.len())
    known = items.select("item_id").join(counts, on="item_id", how="left").with_columns(pl.col("n").fill_null(0))
    # Items from the most popular down, until a third of the interactions is theirs, and so on.
    ordered = known.sort("n", "item_id", descending=[True, False]).with_columns(
        before=pl.col("n").cum_sum() - pl.col("n")
    )
    share = pl.col("before") / pl.col("n").sum()
    band = (
        pl.when(pl.col("n") == 0).then(pl.lit("none"))
        .when(share < 1 / 3).then(pl.lit("head"))
        .when(share < 2 / 3).then(pl.lit("middle"))
        .otherwise(pl.lit("tail"))
    )  # fmt: skip
    parts = ordered.select(
        "item_id", pl.when(pl.col("n") > 0).then(pl.lit("warm")).otherwise(pl.lit("cold")).alias("items"),
        band.alias(POPULARITY),
    )  # fmt: skip
    named = [pl.col(name).cast(pl.String).alias(f"item: {name}") for name in _groups(items, prepared)]
    return parts.join(items.select("item_id", *named), on="item_id")


def _pairs(prepared: Prepared, cut: Cut, protocol: str) -> pl.DataFrame:
    """`cut`, `user_id`, `item_id` of the truth with a column for every segment."""
    truth = next((asked.truth for asked in cut.protocols if asked.name == protocol), None)
    items = item_parts(prepared, cut)
    if truth is None:
        truth = cut.split.test.select("user_id", "item_id").clear()
    lengths = cut.split.train.group_by("user_id").agg(n=pl.len())
    labels = [f"{first}-{after - 1}" for first, after in pairwise(HISTORY_BANDS)]
    band = pl.lit(f"{HISTORY_BANDS[-1]}+")
    for label, after in reversed(list(zip(labels, HISTORY_BANDS[1:], strict=True))):
        band = pl.when(pl.col("n") < after).then(pl.lit(label)).otherwise(band)
    pairs = truth.join(items, on="item_id", how="left").join(lengths, on="user_id", how="left")
    band = pl.when(pl.col("n").is_null()).then(None).otherwise(band)
    pairs = pairs.with_columns(band.alias("history length")).drop("n")
    if prepared.tables.users is not None:
        named = [
            pl.col(name).cast(pl.String).alias(f"user: {name}") for name in _groups(prepared.tables.users, prepared)
        ]
        pairs = pairs.join(prepared.tables.users.select("user_id", *named), on="user_id", how="left")
    return pairs.with_columns(cut=pl.lit(cut.place, dtype=pl.Int32))


def _places(prepared: Prepared, answers: Sequence[Answers], pairs: pl.DataFrame) -> pl.DataFrame:
    """`cut`, `user_id`, `item_id`, `place` of the pairs that are among the first k."""
    parts = [
        metrics.first_k(answer.lists, prepared.k).with_columns(
            cut=pl.lit(answer.cut, dtype=pl.Int32), place=pl.col("place").cast(pl.Int64)
        )
        for answer in answers
    ]
    return pl.concat(parts).join(pairs, on=["cut", "user_id", "item_id"], how="semi")


def _segment(
    segment: str, value: str, pairs: pl.DataFrame, places: Mapping[str, pl.DataFrame], prepared: Prepared, n: int
) -> list[Segment]:
    part = pairs.filter(pl.col(segment) == value)
    keys = ["cut", "user_id"]
    users = part.group_by(keys).agg(n=pl.len()).sort(keys)
    relevant, k = users["n"].to_numpy(), prepared.k
    discount = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discount)[np.minimum(relevant, k) - 1]
    columns = []
    for found in places.values():
        hits = found.join(part, on=[*keys, "item_id"], how="semi")
        gained = hits.group_by(keys).agg(dcg=(1 / (pl.col("place") + 2).log(2)).sum(), hits=pl.len())
        mine = users.join(gained, on=keys, how="left", maintain_order="left").fill_null(0)
        columns += [mine["dcg"].to_numpy() / best, mine["hits"].to_numpy() / relevant]
    values = np.stack(columns, axis=1).astype(np.float64)
    owners = None
    if len(prepared.cuts) > 1:
        owners = (users["user_id"].rank("dense").cast(pl.Int64) - 1).to_numpy()
    means = metrics.bootstrap_means(values, n_samples=n, seed=prepared.config.seed, owners=owners)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    made = [
        Estimate(mean=float(mean), low=float(a), high=float(b))
        for mean, a, b in zip(values.mean(axis=0), low, high, strict=True)
    ]
    names = (f"ndcg@{k}", f"recall@{k}")
    return [
        Segment(
            segment=segment, value=str(value), system=system, n_users=users.height, n_pairs=part.height,
            metrics=dict(zip(names, made[2 * place : 2 * place + 2], strict=True)),
        )
        for place, system in enumerate(places)
    ]  # fmt: skip


def _gaps(segment: str, found: Sequence[Segment], systems: Sequence[str], k: int) -> list[Fairness]:
    """Best minus worst group's ndcg of each system."""
    rows = []
    for system in systems:
        mine = [part for part in found if part.segment == segment and part.system == system]
        means = {part.value: part.metrics[f"ndcg@{k}"].mean or 0.0 for part in mine}
        if len(means) > 1:
            best, worst = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
            rows.append(
                Fairness(
                    kind="metric gap", segment=segment, system=system, value=means[best] - means[worst],
                    reference=None, groups=[best, worst],
                )
            )  # fmt: skip
    return rows


def _exposure(segment: str, prepared: Prepared, answers: Sequence[Answers]) -> list[Fairness]:
    """Each group's share of the places in the lists, beside its share of the interactions in train."""
    parts = {cut.place: item_parts(prepared, cut).select("item_id", group=pl.col(segment)) for cut in prepared.cuts}
    train = pl.concat([cut.split.train.join(parts[cut.place], on="item_id").select("group") for cut in prepared.cuts])
    before = dict(train["group"].value_counts(normalize=True).iter_rows())
    rows = []
    for system in dict.fromkeys(answer.system for answer in answers):
        lists = [answer for answer in answers if answer.system == system]
        shown = pl.concat(
            [metrics.first_k(a.lists, prepared.k).join(parts[a.cut], on="item_id").select("group") for a in lists]
        )
        shares = dict(shown["group"].value_counts(normalize=True).iter_rows())
        groups = sorted({name for name in (*before, *shares) if name is not None})
        rows += [
            Fairness(
                kind="exposure", segment=segment, system=system, value=float(shares.get(group, 0.0)),
                reference=float(before.get(group, 0.0)), groups=[str(group)],
            )
            for group in groups
        ]  # fmt: skip
    return rows


def _groups(table: pl.DataFrame, prepared: Prepared) -> list[str]:
    """Columns of text or truth values with 2 to `MAX_VALUES` values."""
    kinds = (pl.String, pl.Boolean, pl.Categorical)
    chosen = [
        name
        for name, kind in table.schema.items()
        if name not in NOT_GROUPS and (kind in kinds or isinstance(kind, pl.Enum))
    ]
    return [name for name in chosen if 2 <= table[name].n_unique() <= MAX_VALUES][:MAX_COLUMNS]
