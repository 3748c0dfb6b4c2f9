"""May this result go out? A result against a baseline: no regression, no leak, nothing too good to be true.

Owns the checks. They read two results. Where both are folders of the same test, users are paired; of two tests, means
and intervals are compared.
"""

from pathlib import Path
from typing import Any

from recsys.bench.comparison import compare
from recsys.bench.result import RESULT, BenchResult, Estimate, read_result
from recsys.errors import InvalidConfig

PASSED = "passed"
REGRESSION = "regression"
TOO_GOOD = "too good to be true"
LEAK = "leak"
FEWEST_USERS = 30  # means over fewer say nothing


def gate(
    result: str | Path,
    against: str | Path,
    *,
    system: str = "two-stage",
    metric: str | None = None,
    tolerance: float = 0.02,
    jump: float = 2.0,
) -> dict[str, Any]:
    """Check a result against a baseline.

    A protocol regresses where the metric is more than `tolerance` below the baseline's (as a share of it) and the
    difference is no matter of chance: where users can be paired, the upper end of its interval is below 0; where the
    tests differ, the two intervals lie apart. It is too good to be true where it is more than `jump` times the
    baseline's. A protocol with fewer than 30 users on either side is named and not judged, one of the baseline that the
    result lacks is a regression. What the run itself flagged counts as well, unless the baseline was flagged for it.

    Args:
        result: results folder, or its JSON.
        against: the same of the baseline.
        system: who is checked, in both.
        metric: such as "ndcg@10"; by default that at the result's k.
        tolerance: relative loss allowed, 0 or more.
        jump: factor of a gain that nobody believes, above 1.

    Returns:
        `verdict`: "passed" or the first check's that failed; `system`, `metric`, `paired`, `same_test`, and `checks`:
        each with `protocol`, `verdict`, `value`, `baseline` and a `message`.

    Raises:
        InvalidData: there is no such result.
        InvalidConfig: `tolerance` or `jump` is out of range, or there is no such system or metric in both.
    """
    if tolerance < 0 or jump <= 1:
        raise InvalidConfig(f"tolerance={tolerance} must be 0 or more and jump={jump} above 1")
    new, old = read_result(result), read_result(against)
    name = metric or f"ndcg@{new.k}"
    new_values, old_values = _found(new, system, name), _found(old, system, name)
    shared = [protocol for protocol in new_values if protocol in old_values]
    if not shared:
        raise InvalidConfig(
            f"{result} and {against} share no protocol with {name} of {system!r}; there are the systems "
            f"{', '.join(new.systems)} and {', '.join(old.systems)}"
        )
    paired = _paired(Path(result), Path(against), new, old, system, name)
    same_test = new.test_hash == old.test_hash
    checks = [
        _check(
            protocol, new_values[protocol], old_values[protocol], paired.get(protocol), name, tolerance, jump,
            same_test=same_test,
        )
        for protocol in shared
    ]  # fmt: skip
    checks += [
        {
            "protocol": protocol, "verdict": REGRESSION, "value": None, "baseline": was.mean,
            "message": f"{protocol}: the baseline has it, the result does not",
        }
        for protocol, (was, _) in old_values.items() if protocol not in new_values
    ]  # fmt: skip
    known = {(flag.kind, flag.what) for flag in old.flags}
    checks += [
        {"protocol": None, "verdict": flag.kind, "value": None, "baseline": None, "message": flag.message}
        for flag in new.flags
        if (flag.kind, flag.what) not in known and (flag.kind == LEAK or flag.what == system)
    ]
    failed = [check["verdict"] for check in checks if check["verdict"] != PASSED]
    verdict = failed[0] if failed else PASSED
    return {
        "verdict": verdict, "system": system, "metric": name, "paired": bool(paired), "same_test": same_test,
        "checks": checks,
    }  # fmt: skip


def _found(result: BenchResult, system: str, metric: str) -> dict[str, tuple[Estimate, int]]:
    """Protocol to the metric and how many users it is of."""
    return {
        table.protocol: (row.metrics[metric], table.n_users)
        for table in result.tables
        for row in table.rows
        if row.system == system and metric in row.metrics
    }


def _paired(
    result: Path, against: Path, new: BenchResult, old: BenchResult, system: str, metric: str
) -> dict[str, tuple[float, float]]:
    """Protocol to the interval of the difference, where both are folders of the same test."""
    folders = [path if path.is_dir() else path.parent for path in (against, result)]
    whole = all((folder / RESULT).is_file() and (folder / "per_user.parquet").is_file() for folder in folders)
    named = all(path.is_dir() or path.name == RESULT for path in (against, result))
    if (
        not (whole and named)
        or new.test_hash != old.test_hash
        or metric not in {*new.user_metrics} & {*old.user_metrics}
    ):
        return {}
    found = compare(*folders, metrics_of=[metric], systems=(system, system))
    return {protocol: (rows[0]["low"], rows[0]["high"]) for protocol, rows in found["tables"].items()}


def _check(
    protocol: str,
    new: tuple[Estimate, int],
    old: tuple[Estimate, int],
    interval: tuple[float, float] | None,
    metric: str,
    tolerance: float,
    jump: float,
    *,
    same_test: bool,
) -> dict[str, Any]:
    value, baseline = (float(found.mean or 0.0) for found, _ in (new, old))
    few = min(new[1], old[1])
    judged = few >= FEWEST_USERS
    lost = judged and value < baseline * (1 - tolerance) and _surely_below(new[0], old[0], interval, same_test)
    gained = judged and value > baseline * jump > 0.0
    verdict = REGRESSION if lost else TOO_GOOD if gained else PASSED
    surely = "" if interval is None else f", difference {interval[0]:+.4f} to {interval[1]:+.4f} user by user"
    message = f"{protocol}: {metric} {value:.4f}, baseline {baseline:.4f}{surely}"
    message += "" if same_test else " (another test)"
    message += "" if judged else f"; {few} users are too few to judge"
    if gained:
        message += f"; more than {jump:g} times the baseline: look for a leak before you believe it"
    return {"protocol": protocol, "verdict": verdict, "value": value, "baseline": baseline, "message": message}


def _surely_below(new: Estimate, old: Estimate, interval: tuple[float, float] | None, same_test: bool) -> bool:
    """Whether a loss is no matter of chance, as far as can be seen."""
    if interval is not None:
        return interval[1] < 0
    if same_test or new.high is None or old.low is None:
        return True
    return new.high < old.low
