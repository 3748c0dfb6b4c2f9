"""Which of two systems is better: paired differences, p-values corrected for many comparisons, verdicts.

Owns the verdict. Two results are compared user by user from their folders, and only where they had the same test.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from recsys import metrics
from recsys.bench.plain import aligned
from recsys.bench.result import Difference, ResultFolder
from recsys.errors import InvalidConfig, InvalidData

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.05
FEWEST_PEOPLE = 5  # what fewer people have in common is no finding
NO_MERIT = ("novelty", "ild", "popularity_lift")  # more of it is neither better nor worse


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false finding among all of them stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    n = len(order)
    scaled = np.maximum.accumulate(np.asarray(p_values)[order] * (n - np.arange(n))) if n else np.empty(0)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(scaled, 1.0)
    return [float(p) for p in adjusted]


def differences(
    values: Mapping[str, tuple[FloatArray, FloatArray]],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    *,
    n_people: int,
) -> tuple[Difference, ...]:
    """Paired differences with percentile intervals, two-sided p-values, and verdicts after Holm's correction.

    p is that of a t-test with the bootstrap's standard error: the share of resamples on the other side of 0 could not
    be smaller than one in a thousand, which many comparisons would use up.
    Source: Efron and Tibshirani 1993, section 12.4, with the bootstrap's standard error.

    Args:
        values: system to (n_users,) values, and (n_samples,) means over the same resamples for every system.
        pairs: who is compared with whom.
        metric: its name.
        n_people: whose values they are; fewer than rows where people are asked at several cuts.
    """
    raw = [_difference(*values[system], *values[other], n_people) for system, other in pairs]
    adjusted = holm([p for *_, p in raw])
    return tuple(
        Difference(
            system=system, other=other, metric=metric, difference=mean, low=low, high=high, p=p, p_adjusted=corrected,
            verdict=verdict(mean, corrected, metric),
        )
        for (system, other), (mean, low, high, p), corrected in zip(pairs, raw, adjusted, strict=True)
    )  # fmt: skip


def verdict(difference: float, p_adjusted: float, metric: str) -> str:
    """ "better", "worse" or "undecided"; "higher" or "lower" where the metric is no merit."""
    if not p_adjusted < LEVEL or difference == 0:
        return "undecided"
    if metric.startswith(NO_MERIT):
        return "higher" if difference > 0 else "lower"
    return "better" if difference > 0 else "worse"


def compare(
    a: str | Path,
    b: str | Path,
    *,
    metrics_of: Sequence[str] | None = None,
    systems: tuple[str, str] | None = None,
    n_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Two results of the same test, user by user: b minus a.

    Args:
        a: folder of the older result.
        b: folder of the newer one.
        metrics_of: such as ("ndcg@10", "recall@10"); by default these two at the results' k.
        systems: one of a and one of b; by default every system that both have.
        n_samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `a`, `b`, `test_hash` and `tables`: protocol to differences (see `Difference`; `system` is of b, `other` of a),
        corrected over all differences of all protocols.

    Raises:
        InvalidData: there is no such result, or they had different tests or users.
        InvalidConfig: nothing can be compared.
    """
    if n_samples < 1:
        raise InvalidConfig(f"n_samples={n_samples} must be at least 1")
    old, new = ResultFolder(Path(a)), ResultFolder(Path(b))
    if old.result.test_hash != new.result.test_hash:
        raise InvalidData(
            table=f"{a} and {b}",
            rule=f"had different tests (hashes {old.result.test_hash} and {new.result.test_hash})",
            remedy="run both on the same data with the same split",
        )
    wanted = list(metrics_of or [f"{name}@{new.result.k}" for name in ("ndcg", "recall")])
    missing = [name for name in wanted if not {name} <= set(old.result.user_metrics) & set(new.result.user_metrics)]
    if missing:
        raise InvalidConfig(
            f"both results must have {', '.join(missing)}; there are {', '.join(new.result.user_metrics)}"
        )
    found: list[tuple[str, Difference]] = []
    for protocol in (table.protocol for table in new.result.tables):
        for first, second in _matched(old, new, protocol, systems):
            found += [
                (protocol, part) for part in _compared(old, new, protocol, first, second, wanted, n_samples, seed)
            ]
    if not found:
        if any(_matched(old, new, table.protocol, systems) for table in new.result.tables):
            raise InvalidConfig(f"{a} and {b} have no value of {', '.join(wanted)} for the same people")
        there = "; ".join(f"{folder.path} has {', '.join(folder.result.systems)}" for folder in (old, new))
        raise InvalidConfig(f"{a} and {b} have nothing to compare under the same protocol: {there}")
    corrected = holm([part.p for _, part in found])
    tables: dict[str, list[dict[str, Any]]] = {}
    for (protocol, part), p in zip(found, corrected, strict=True):
        row = {name: getattr(part, name) for name in part.__slots__}
        tables.setdefault(protocol, []).append(
            {**row, "p_adjusted": p, "verdict": verdict(part.difference, p, part.metric)}
        )
    return {"a": str(a), "b": str(b), "test_hash": new.result.test_hash, "n_comparisons": len(found), "tables": tables}


def _matched(
    old: ResultFolder, new: ResultFolder, protocol: str, systems: tuple[str, str] | None
) -> list[tuple[str, str]]:
    there = [
        {row.system: None for table in folder.result.tables if table.protocol == protocol for row in table.rows}
        for folder in (old, new)
    ]
    if systems is not None:
        return [systems] if systems[0] in there[0] and systems[1] in there[1] else []
    return [(name, name) for name in there[1] if name in there[0]]


def _compared(
    old: ResultFolder, new: ResultFolder, protocol: str, first: str, second: str, wanted: list[str], n: int, seed: int
) -> list[Difference]:
    keys = ["cut", "user_id"]
    a = old.per_user.filter(protocol=protocol, system=first).select(*keys, *wanted)
    b = new.per_user.filter(protocol=protocol, system=second).select(*keys, *wanted)
    if not a.select(keys).equals(b.select(keys)):
        raise InvalidData(
            table=f"{old.path} and {new.path}", rule=f"{protocol!r} has other users", remedy="run both again"
        )
    owners = (a["user_id"].rank("dense").cast(int) - 1).to_numpy()
    values = [frame.select(wanted).to_numpy().astype(np.float64) for frame in (a, b)]
    known = ~(np.isnan(values[0]) | np.isnan(values[1]))
    values = [np.where(known, part, np.nan) for part in values]  # a metric may say nothing of somebody on one side
    means = [metrics.bootstrap_means(part, n_samples=n, seed=seed, owners=owners) for part in values]
    made = []
    for column, name in enumerate(wanted):
        if not known[:, column].any():
            continue
        n_people = len(np.unique(owners[known[:, column]]))
        named = {side: (values[place][:, column], means[place][:, column]) for place, side in enumerate(("old", "new"))}
        (part,) = differences(named, [("new", "old")], name, n_people=n_people)
        made.append(
            Difference(**{**{key: getattr(part, key) for key in part.__slots__}, "system": second, "other": first})
        )
    return made


def _difference(
    a: FloatArray, means_a: FloatArray, b: FloatArray, means_b: FloatArray, n_people: int
) -> tuple[float, float, float, float]:
    """Mean, interval and p; of too few people, or where everybody differs by the same, nothing can be said: p is 1."""
    mean = float(np.nanmean(a - b))
    drawn = means_a - means_b
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    error = float(np.nanstd(drawn))
    if n_people < FEWEST_PEOPLE or error <= 1e-9 * abs(mean):
        return mean, float(low), float(high), 1.0
    return mean, float(low), float(high), float(2 * stats.t.sf(abs(mean) / error, n_people - 1))


def render_comparison(found: Mapping[str, Any]) -> str:
    """What `compare` found, as aligned text."""
    parts = [f"{found['b']} minus {found['a']}, test {found['test_hash']}, {found['n_comparisons']} comparisons"]
    for protocol, rows in found["tables"].items():
        heads = ("system", "metric", "difference", "95% interval", "p (Holm)", "verdict")
        cells = [
            (
                row["system"] if row["system"] == row["other"] else f"{row['system']} - {row['other']}",
                row["metric"],
                f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}",
                f"{row['p_adjusted']:.4f}",
                row["verdict"],
            )
            for row in rows
        ]
        parts += [f"\n{protocol}", aligned([heads, *cells])]
    return "\n".join(parts) + "\n"
