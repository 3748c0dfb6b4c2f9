"""For whom: the same metrics on parts of the users and of the pairs, and how unequally groups are treated.

Owns the parts. A part of the pairs (warm and cold items, popularity, a column of the items) keeps a user's pairs of
that part as his truth; a part of the users (length of history, a column of the users) keeps all pairs of some users.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from recsys import metrics
from recsys.bench.groups import grouped
from recsys.bench.protocols import Cut, Prepared
from recsys.bench.result import Estimate, Fairness, Segment
from recsys.bench.systems import Answers

HISTORY_BANDS = (1, 5, 10, 20, 50)
LENGTHS = (*(f"{first}-{after - 1}" for first, after in pairwise(HISTORY_BANDS)), f"{HISTORY_BANDS[-1]}+")
LENGTH = "history length"
WARMTH = "items"
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
    parts = {cut.place: item_parts(prepared, cut) for cut in prepared.cuts}
    people = user_parts(prepared)
    pairs = pl.concat([_pairs(cut, protocol, parts[cut.place], people) for cut in prepared.cuts])
    places = {system: _places(prepared, [a for a in answers if a.system == system], pairs) for system in systems}
    of_items = [name for name in parts[0].columns if name != "item_id"]
    of_users = [*([] if cold_users else [LENGTH]), *people.columns[1:]]
    found: list[Segment] = []
    for segment in (*of_items, *of_users):
        for value in pairs[segment].drop_nulls().unique().sort():
            found += _segment(segment, value, pairs, places, prepared, n_samples)
    gaps = [row for segment in of_users for row in _gaps(segment, found, systems, prepared.k)]
    exposure = [
        row for segment in of_items if segment != WARMTH for row in _exposure(segment, parts, prepared, answers)
    ]
    return tuple(found), (*gaps, *exposure)


def user_parts(prepared: Prepared) -> pl.DataFrame:
    """`user_id` and the users' columns as groups, such as "user: country"; one row a user."""
    users = prepared.tables.users
    if users is None:
        return prepared.tables.interactions.select("user_id").clear()
    return (
        grouped(users, "user_id", prepared.segments)
        .rename(lambda name: f"user: {name}")
        .rename({"user: user_id": "user_id"})
    )


def item_parts(prepared: Prepared, cut: Cut) -> pl.DataFrame:
    """`item_id`, "items", "item popularity" and columns as groups, such as "item: brand"; one row an item."""
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
    warmth = pl.when(pl.col("n") > 0).then(pl.lit("warm")).otherwise(pl.lit("cold"))
    parts = ordered.select(
        "item_id",
        warmth.cast(pl.Enum(["warm", "cold"])).alias(WARMTH),
        band.cast(pl.Enum(["head", "middle", "tail", "none"])).alias(POPULARITY),
    )
    columns = grouped(items, "item_id", prepared.segments).rename(lambda name: f"item: {name}")
    return parts.join(columns, left_on="item_id", right_on="item: item_id")


def _pairs(cut: Cut, protocol: str, items: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """`cut`, `user_id`, `item_id` of the truth with a column for every segment."""
    truth = next((asked.truth for asked in cut.protocols if asked.name == protocol), None)
    if truth is None:
        truth = cut.split.test.select("user_id", "item_id").clear()
    lengths = cut.split.train.group_by("user_id").agg(n=pl.len())
    band = pl.lit(LENGTHS[-1])
    for label, after in reversed(list(zip(LENGTHS[:-1], HISTORY_BANDS[1:], strict=True))):
        band = pl.when(pl.col("n") < after).then(pl.lit(label)).otherwise(band)
    band = pl.when(pl.col("n").is_not_null()).then(band).cast(pl.Enum(LENGTHS))
    pairs = truth.join(items, on="item_id", how="left").join(lengths, on="user_id", how="left")
    pairs = pairs.with_columns(band.alias(LENGTH)).drop("n").join(people, on="user_id", how="left")
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


def _exposure(
    segment: str, items: Mapping[int, pl.DataFrame], prepared: Prepared, answers: Sequence[Answers]
) -> list[Fairness]:
    """Each group's share of the places in the lists, beside its share of the interactions in train."""
    parts = {place: part.select("item_id", group=pl.col(segment)) for place, part in items.items()}
    train = pl.concat([cut.split.train.join(parts[cut.place], on="item_id").select("group") for cut in prepared.cuts])
    before, kind = _shares(train), parts[0].schema["group"]
    groups = kind.categories if isinstance(kind, pl.Enum) else ()
    rows = []
    for system in dict.fromkeys(answer.system for answer in answers):
        lists = [answer for answer in answers if answer.system == system]
        shown = pl.concat(
            [metrics.first_k(a.lists, prepared.k).join(parts[a.cut], on="item_id").select("group") for a in lists]
        )
        shares = _shares(shown)
        rows += [
            Fairness(
                kind="exposure", segment=segment, system=system, value=shares.get(group, 0.0),
                reference=before.get(group, 0.0), groups=[group],
            )
            for group in groups
            if group in shares or group in before
        ]  # fmt: skip
    return rows


def _shares(shown: pl.DataFrame) -> dict[str, float]:
    """Group to its share of the rows; items of no group count in the whole."""
    return dict(shown["group"].value_counts(normalize=True).drop_nulls().iter_rows())
