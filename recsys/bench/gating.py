"""May this result go out? A result against a baseline: no regression, no leak, nothing too good to be true.

Owns the checks. They read two results; where both are folders of the same test, users are paired, otherwise only the
means are compared.
"""

from pathlib import Path
from typing import Any

from recsys.bench.comparison import compare
from recsys.bench.result import RESULT, BenchResult, read_result
from recsys.errors import InvalidConfig

PASSED = "passed"
REGRESSION = "regression"
TOO_GOOD = "too good to be true"
LEAK = "leak"


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

    A protocol regresses where the metric is more than `tolerance` below the baseline's (as a share of it) and, where
    users can be paired, the difference is not a matter of chance: the upper end of its interval is below 0. It is too
    good to be true where it is more than `jump` times the baseline's. What the run itself flagged counts as well,
    unless the baseline was flagged for the same.

    Args:
        result: results folder, or its JSON.
        against: the same of the baseline.
        system: who is checked, in both.
        metric: such as "ndcg@10"; by default that at the result's k.
        tolerance: relative loss allowed, 0 or more.
        jump: factor of a gain that nobody believes, above 1.

    Returns:
        `verdict`: "passed" or the first check's that failed; `system`, `metric`, `paired`, and `checks`: each with
        `protocol`, `verdict`, `value`, `baseline` and a `message`.

    Raises:
        InvalidData: there is no such result.
        InvalidConfig: `tolerance` or `jump` is out of range, or there is no such system or metric in both.
    """
    if tolerance < 0 or jump <= 1:
        raise InvalidConfig(f"tolerance={tolerance} must be 0 or more and jump={jump} above 1")
    new, old = read_result(result), read_result(against)
    name = metric or f"ndcg@{new.k}"
    new_values, old_values = _means(new, system, name), _means(old, system, name)
    shared = [protocol for protocol in new_values if protocol in old_values]
    if not shared:
        raise InvalidConfig(
            f"{result} and {against} share no protocol with {name} of {system!r}; there are the systems "
            f"{', '.join(new.systems)} and {', '.join(old.systems)}"
        )
    paired = _paired(Path(result), Path(against), new, old, system, name)
    checks = [
        _check(protocol, new_values[protocol], old_values[protocol], paired.get(protocol), name, tolerance, jump)
        for protocol in shared
    ]
    known = {(flag.kind, flag.what) for flag in old.flags}
    checks += [
        {"protocol": None, "verdict": flag.kind, "value": None, "baseline": None, "message": flag.message}
        for flag in new.flags
        if (flag.kind, flag.what) not in known and (flag.kind == LEAK or flag.what == system)
    ]
    failed = [check["verdict"] for check in checks if check["verdict"] != PASSED]
    verdict = failed[0] if failed else PASSED
    return {"verdict": verdict, "system": system, "metric": name, "paired": bool(paired), "checks": checks}


def _means(result: BenchResult, system: str, metric: str) -> dict[str, float]:
    return {
        table.protocol: float(row.metrics[metric].mean or 0.0)
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
    value: float,
    baseline: float,
    interval: tuple[float, float] | None,
    metric: str,
    tolerance: float,
    jump: float,
) -> dict[str, Any]:
    lost = value < baseline * (1 - tolerance) and (interval is None or interval[1] < 0)
    gained = value > baseline * jump and value > 0
    verdict = REGRESSION if lost else TOO_GOOD if gained else PASSED
    surely = "" if interval is None else f", difference {interval[0]:+.4f} to {interval[1]:+.4f} user by user"
    message = f"{protocol}: {metric} {value:.4f}, baseline {baseline:.4f}{surely}"
    if gained:
        message += f"; more than {jump:g} times the baseline: look for a leak before you believe it"
    return {"protocol": protocol, "verdict": verdict, "value": value, "baseline": baseline, "message": message}
