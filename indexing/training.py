"""How a model is trained: PyTorch Lightning for device, precision, time limit, early stopping, logs and checkpoints.

Owns one call of Lightning's trainer; the settings are `training_config.py`'s. What is learnt from what is
`indexing/text_lesson.py` and `indexing/tower_lesson.py`.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from indexing.training_config import TrainingConfig

CHECKPOINT = "last.ckpt"


class Batches(Dataset[NDArray[np.int64]]):
    """Row numbers, one array a step."""

    def __init__(self, batches: Sequence[NDArray[np.int64]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.batches)

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        """The rows of one step."""
        return self.batches[step]


class Lesson(lightning.LightningModule):
    """What `train` trains: `step_loss` on row numbers, and `validation_loss` on whatever was set aside.

    Attributes:
        total_steps: of the learning rate's schedule.
        warm_up: share of the steps in which the rate rises to its peak; after it it falls along a cosine to zero.
    """

    total_steps = 1
    warm_up = 0.1

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for AdamW, each with its peak `lr`."""
        raise NotImplementedError

    def step_loss(self, rows: NDArray[np.int64], step: int) -> torch.Tensor:
        """Loss of one step, a scalar."""
        raise NotImplementedError

    def validation_loss(self) -> float | None:
        """Loss on what was set aside; None where nothing was."""
        return None

    def training_step(self, rows: NDArray[np.int64], step: int) -> torch.Tensor:
        """Called by Lightning."""
        loss = self.step_loss(rows, self.global_step)
        self.log("loss", loss.detach(), batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Called by Lightning: AdamW, linear warm-up, then a cosine."""
        optimizer = torch.optim.AdamW(self.groups(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        warm = max(1.0, self.warm_up * self.total_steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return float(0.5 * (1.0 + np.cos(np.pi * min(1.0, (step - warm) / max(1.0, self.total_steps - warm)))))


def train(
    lesson: Lesson,
    batches: Sequence[NDArray[np.int64]],
    config: TrainingConfig,
    *,
    name: str,
    device: str,
    seed: int,
    max_seconds: float | None = None,
    max_grad_norm: float = 1.0,
    progress: bool = False,
) -> int:
    """Train in place, and keep the weights with the best validation loss.

    Args:
        lesson: on any device; it comes back on `device`, in evaluation mode.
        batches: int64 rows of each step.
        config: precision, early stopping, logs, checkpoints.
        name: of the bar, the logs and the checkpoints.
        device: "cpu", "cuda" or "cuda:0".
        seed: of everything that is drawn while training.
        max_seconds: wall-clock limit after which training stops where it is, or None.
        max_grad_norm: gradient clip.
        progress: show a bar on stderr.

    Returns:
        Steps after which the weights that were kept stood.
    """
    if not batches:
        lesson.to(device).eval()
        return 0
    lesson.total_steps = len(batches)
    folder = _checkpoint_folder(config, name, batches, seed)
    done = _steps_done(folder)
    watch = Watch(len(batches), config, name=name, max_seconds=max_seconds, progress=progress)
    with torch.random.fork_rng(), _quiet(), _interruptible(), _repeatable(device):
        torch.manual_seed(seed + done)
        trainer = lightning.Trainer(
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1 if device == "cpu" else _devices(device, config),
            strategy=config.strategy,
            precision="bf16-mixed" if wants_bf16(config, device) else "32-true",
            max_steps=len(batches),
            max_epochs=1,
            gradient_clip_val=max_grad_norm,
            logger=_logger(config, name),
            callbacks=[watch, *_checkpoints(config, folder)],
            enable_checkpointing=folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            use_distributed_sampler=config.n_devices > 1,
        )
        loader: DataLoader[NDArray[np.int64]] = DataLoader(Batches(batches[done:]), batch_size=None, collate_fn=_as_is)
        trainer.fit(lesson, loader, ckpt_path=str(folder / CHECKPOINT) if folder and done else None, weights_only=True)
    watch.restore(lesson)
    lesson.to(device).eval()
    return watch.best_step or int(trainer.global_step)


class Watch(Callback):
    """The bar, the time limit, the validation loss and the best weights of one training."""

    def __init__(
        self, steps: int, config: TrainingConfig, *, name: str, max_seconds: float | None, progress: bool
    ) -> None:
        self.every = max(1, steps // config.checks)
        self.patience = config.patience
        self.end = None if max_seconds is None else time.monotonic() + max_seconds
        self.best_loss = float("inf")
        self.best: dict[str, torch.Tensor] | None = None
        self.best_step = 0
        self.waited = 0
        self.bar = tqdm(total=steps, desc=name, disable=not progress, mininterval=1.0)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: a resumed training knows its best weights and how long it has waited for better ones."""
        return {name: getattr(self, name) for name in ("best_loss", "best", "best_step", "waited")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show what a resumed training has behind it."""
        self.bar.update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *arguments: Any
    ) -> None:
        """Advance the bar, look at the clock, and now and then at the validation loss."""
        self.bar.update(1)
        step = trainer.global_step
        if step % self.every == 0 and isinstance(pl_module, Lesson):
            self._check(trainer, pl_module)
        if self.end is not None and time.monotonic() > self.end:
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar."""
        self.bar.close()

    def restore(self, lesson: Lesson) -> None:
        """Bring back the best weights."""
        if self.best is not None:
            lesson.load_state_dict(self.best)

    def _check(self, trainer: lightning.Trainer, lesson: Lesson) -> None:
        lesson.eval()
        with torch.no_grad():
            loss = lesson.validation_loss()
        lesson.train()
        if loss is None:
            return
        lesson.log("validation_loss", loss, batch_size=1)
        self.bar.set_postfix(validation=f"{loss:.3f}")
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, trainer.global_step, 0
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in lesson.state_dict().items()}
            return
        self.waited += 1
        if self.patience and self.waited >= self.patience:
            trainer.should_stop = True


def wants_bf16(config: TrainingConfig, device: str) -> bool:
    """Whether matrix products are computed in bf16."""
    from indexing.encoder import best_precision

    return config.precision == "bf16" or (config.precision == "auto" and best_precision(device) == "bf16")


def _as_is(rows: Any) -> Any:
    """Without it the loader would make tensors of row numbers."""
    return rows


def _devices(device: str, config: TrainingConfig) -> int | list[int]:
    return config.n_devices if config.n_devices > 1 else [int(device.partition(":")[2] or 0)]


def _checkpoint_folder(
    config: TrainingConfig, name: str, batches: Sequence[NDArray[np.int64]], seed: int
) -> Path | None:
    """One folder for each plan of work; that data and settings are the same is the caller's business."""
    if config.checkpoint_folder is None:
        return None
    digest = hashlib.sha256(f"{name} {seed} {len(batches)}".encode())
    for batch in batches:
        digest.update(np.ascontiguousarray(batch).data)
    return Path(config.checkpoint_folder) / f"{name.replace(' ', '-')}-{digest.hexdigest()[:12]}"


def _steps_done(folder: Path | None) -> int:
    if folder is None or not (folder / CHECKPOINT).exists():
        return 0
    return int(torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)["global_step"])


def _checkpoints(config: TrainingConfig, folder: Path | None) -> list[Callback]:
    if folder is None:
        return []
    return [
        ModelCheckpoint(
            dirpath=folder, filename="last", every_n_train_steps=config.checkpoint_every, save_top_k=1,
            enable_version_counter=False,
        )
    ]  # fmt: skip


def _logger(config: TrainingConfig, name: str) -> Any:
    if config.log_folder is None:
        return False
    from pytorch_lightning import loggers

    folder, label = config.log_folder, name.replace(" ", "-")
    if config.logger == "tensorboard":
        return loggers.TensorBoardLogger(folder, name=label)
    if config.logger == "csv":
        return loggers.CSVLogger(folder, name=label)
    if config.logger == "wandb":
        return loggers.WandbLogger(name=label, save_dir=folder)
    return loggers.MLFlowLogger(experiment_name=label, save_dir=folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and notices, which concern its own use, off the user's terminal."""
    names = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning_utilities")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|lightning_utilities)")
            warnings.filterwarnings("ignore", message=r".*(lr_scheduler\.step|isinstance\(treespec, LeafSpec\)).*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be what it is elsewhere: Lightning ends the process instead, and has it ignore the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """On a CPU the same seed gives the same weights to the bit: threads would add up gradients in any order.

    On a GPU this would cost speed, and cuBLAS would ask for settings of its own.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
