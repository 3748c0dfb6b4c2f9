"""Offline evaluation that people can decide by: `run_bench`, its steps, and the command `recsys-bench`."""

from typing import Any

_HOMES = {
    "Answers": "systems",
    "BenchResult": "result",
    "Cut": "protocols",
    "Ours": "sharing",
    "Prepared": "protocols",
    "Protocol": "protocols",
    "ResultFolder": "result",
    "SharedFits": "sharing",
    "System": "systems",
    "ask": "systems",
    "ask_baselines": "systems",
    "ask_ours": "systems",
    "compare": "comparison",
    "fit_ours": "systems",
    "gate": "gating",
    "prepare": "protocols",
    "read_lists": "outside",
    "read_result": "result",
    "render": "plain",
    "report": "measure",
    "run_bench": "run",
    "track": "tracking",
    "write_split": "outside",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # What is heavy is imported when it is first used, so that the command's --help answers at once.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"recsys.bench.{_HOMES[name]}"), name)
