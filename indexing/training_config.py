"""The settings of every training by Lightning, apart from it: to read a configuration nobody waits for Lightning."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How Lightning runs the training of the towers.

    Attributes:
        precision: "auto" is bf16 where the device computes it natively; weights stay float32.
        patience: checks of the validation loss without a new best one after which training stops; 0 never stops.
        checks: how often the validation loss is measured in a training.
        n_devices: GPUs to train on; more than one only from a script, since Lightning starts it once for each.
        strategy: Lightning's name of how several GPUs share the work.
        log_folder: folder for logs, or None for none.
        logger: who writes them; "wandb" and "mlflow" must be installed.
        checkpoint_folder: where a training leaves checkpoints and resumes from, or None. They are for resuming only
            and are read without unpickling anything but tensors.
        checkpoint_every: steps between two checkpoints.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    patience: int = 3
    checks: int = 10
    n_devices: int = 1
    strategy: str = "auto"
    log_folder: str | None = None
    logger: Literal["tensorboard", "csv", "wandb", "mlflow"] = "tensorboard"
    checkpoint_folder: str | None = None
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f'training: precision={self.precision!r} must be "auto", "fp32" or "bf16"')
        if self.logger not in ("tensorboard", "csv", "wandb", "mlflow"):
            raise ValueError(f'training: logger={self.logger!r} must be "tensorboard", "csv", "wandb" or "mlflow"')
        if self.patience < 0 or min(self.checks, self.n_devices, self.checkpoint_every) < 1:
            raise ValueError(
                f"training: patience must be 0 or more, checks, n_devices and checkpoint_every 1 or more, got {self}"
            )
