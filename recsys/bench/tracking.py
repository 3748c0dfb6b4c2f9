"""A result's numbers in an experiment tracker: TensorBoard, Weights & Biases or MLflow.

Owns names and the three calls; the trackers are imported when they are asked for. The curves of the trainings are
`indexing/training.py`'s.
"""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from recsys.bench.result import BenchResult
from recsys.errors import InvalidConfig

Tracker = Literal["tensorboard", "wandb", "mlflow"]
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "recsys-bench"
LONGEST = 500  # characters of a setting's value that MLflow takes


def check_tracker(tracker: str, folder: Path | None) -> None:
    """Refuse before hours of work what `track` would refuse after them.

    Raises:
        InvalidConfig: the tracker is unknown or not installed, or "tensorboard" has no folder.
    """
    if tracker not in MODULES:
        raise InvalidConfig(f"tracker {tracker!r} is unknown; there are: {', '.join(MODULES)}")
    try:
        import_module(MODULES[tracker])
    except ImportError as error:
        raise InvalidConfig(
            f"the tracker {tracker} needs the package {tracker}, which is not installed: pip install {tracker}"
        ) from error
    if tracker == "tensorboard" and folder is None:
        raise InvalidConfig("the tracker tensorboard writes into the results folder; name one with --out")


def track(result: BenchResult, tracker: Tracker, folder: Path | None = None) -> None:
    """Log means, ends of intervals, times and memory of every system, and the settings.

    Where the numbers go is the tracker's own configuration (WANDB_PROJECT, MLFLOW_TRACKING_URI).

    Args:
        result: the numbers.
        tracker: "tensorboard", "wandb" or "mlflow".
        folder: for "tensorboard": where its files go.

    Raises:
        InvalidConfig: the tracker is unknown or not installed, or has no folder.
    """
    check_tracker(tracker, folder)
    write: Callable[[dict[str, float], dict[str, str], str, Any], None] = {
        "tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow,
    }[tracker]  # fmt: skip
    write(numbers_of(result), settings_of(result), Path(result.dataset).name, folder)


def numbers_of(result: BenchResult) -> dict[str, float]:
    """By name, such as "new items only/two-stage/ndcg_at_10"; the ends of its interval end in ".low" and ".high"."""
    found: dict[str, float | None] = {}
    for table in result.tables:
        for row in table.rows:
            where = f"{table.protocol}/{row.system}"
            for name, estimate in row.metrics.items():
                found |= {f"{where}/{name}": estimate.mean}
                found |= {f"{where}/{name}.low": estimate.low, f"{where}/{name}.high": estimate.high}
            for name in ("fit_seconds", "users_per_second", "peak_mb"):
                found[f"{where}/{name}"] = getattr(row, name)
    return {_plain(name): value for name, value in found.items() if value is not None}


def settings_of(result: BenchResult) -> dict[str, str]:
    """The configuration by dotted key, and what the result was measured on."""
    about = {
        "dataset": result.dataset, "split": result.split, "test_hash": result.test_hash, "k": result.k,
        **result.settings, **{f"version.{name}": value for name, value in result.versions.items()},
    }  # fmt: skip
    return {name: str(value)[:LONGEST] for name, value in {**about, **_flat(result.config, "config.")}.items()}


def _flat(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return found


def _plain(name: str) -> str:
    """With the letters that every tracker takes."""
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_").replace(": ", " "))


def _tensorboard(numbers: dict[str, float], settings: dict[str, str], name: str, folder: Any) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for key, value in numbers.items():
            writer.add_scalar(key, value)
        said = "\n".join(f"    {key} = {value}" for key, value in settings.items())
        writer.add_text("settings", said)


def _wandb(numbers: dict[str, float], settings: dict[str, str], name: str, folder: Any) -> None:
    import os

    wandb: Any = import_module("wandb")
    with wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, config=settings) as run:
        run.log(numbers)


def _mlflow(numbers: dict[str, float], settings: dict[str, str], name: str, folder: Any) -> None:
    mlflow: Any = import_module("mlflow")
    with mlflow.start_run(run_name=name):
        mlflow.log_params(settings)
        mlflow.log_metrics(numbers)
