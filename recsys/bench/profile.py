"""Speed and memory alone: what fits and lists take, without a single metric.

Owns the measurement; clock and meter are `recsys/profiling.py`.
"""

from typing import Any

from recsys.bench.plain import aligned
from recsys.bench.protocols import prepare
from recsys.bench.systems import DEFAULT, Systems, ask
from recsys.bundle import library_versions
from recsys.config import RecommenderConfig
from recsys.datasets import Dataset
from recsys.profiling import machine


def profile(
    dataset: Dataset, config: RecommenderConfig | None = None, *, systems: Systems = DEFAULT, **arguments: Any
) -> dict[str, Any]:
    """Fit systems and ask them for lists, as `run_bench` does, and say what that took.

    Args:
        dataset: the tables.
        config: of our system.
        systems: as in `run_bench`.
        arguments: of `prepare`.

    Returns:
        `dataset`, `versions`, `machine` and `rows`: `system`, `protocol`, `cut`, `users`, `fit_seconds`, `ask_seconds`,
        `users_per_second`, `milliseconds_per_user`, `peak_mb`.
    """
    arguments.pop("n_samples", None)
    prepared = prepare(dataset, config, **arguments)
    answers, _ = ask(prepared, systems)
    rows = []
    for answer in answers:
        protocol = next(p for p in prepared.cuts[answer.cut].protocols if p.name == answer.protocol)
        n, seconds = len(protocol.users), answer.ask.seconds
        rows.append(
            {
                "system": answer.system,
                "protocol": answer.protocol,
                "cut": answer.cut,
                "users": n,
                "fit_seconds": answer.fit.seconds,
                "ask_seconds": seconds,
                "users_per_second": n / max(seconds, 1e-9),
                "milliseconds_per_user": 1000 * seconds / n,
                "peak_mb": max(answer.fit.peak_mb, answer.ask.peak_mb),
            }
        )
    return {"dataset": prepared.dataset, "versions": library_versions(), "machine": machine(), "rows": rows}


def render_profile(measured: dict[str, Any]) -> str:
    """An aligned table."""
    heads = ("system", "protocol", "users", "fit s", "users/s", "ms/user", "peak MB")
    rows = [
        (
            row["system"],
            row["protocol"],
            f"{row['users']:,}",
            f"{row['fit_seconds']:.1f}",
            f"{row['users_per_second']:,.0f}",
            f"{row['milliseconds_per_user']:.2f}",
            f"{row['peak_mb']:,.0f}",
        )
        for row in measured["rows"]
    ]
    return f"{measured['dataset']}, {measured['machine']['cores']} cores\n{aligned([heads, *rows])}\n"
