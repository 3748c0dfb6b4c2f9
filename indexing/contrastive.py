"""Training of both towers, in plain sight: the settings, the loss and the plan of work.

First the text encoder learns which items are taken together from their texts alone (`indexing/text_lesson.py`), then
the item tower and the history encoder learn on top of its vectors what is taken next (`indexing/tower_lesson.py`).
Which interactions may be learnt from is the caller's business: everything handed in is used.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MASKED = float("-inf")  # no NaN comes of it: a row's positive is never masked


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """What both towers learn from a step.

    Attributes:
        encoder_steps: gradient steps on the text encoder; None means 250 on a CPU and 3,000 on a GPU, 0 freezes it.
        encoder_batch_size: texts a step.
        encoder_learning_rate: peak.
        encoder_temperature: cosines are divided by it while the text encoder learns.
        word_dropout: share of words and fields dropped from the texts that the encoder reads in training.
        adversarial: length of the worst-case push of the word embeddings that is trained against; 0 leaves it out.
        tower_epochs: passes over all histories for the item tower and the history encoder.
        tower_max_steps: upper limit of gradient steps for them; None means 450 on a CPU and 20,000 on a GPU.
        tower_batch_size: events a step, about.
        tower_learning_rate: peak.
        full_softmax_items: up to this many items every step compares with the whole catalogue.
        n_negatives: items drawn uniformly a step where the catalogue is larger.
        n_hard: of these, so many are replaced in the second phase by the hardest of a larger draw.
        hard_share: share of the steps that belong to the second phase.
        hard_margin: an item that scores within this share of the taken one's score is likely no negative at all.
        cold_share: share of the steps in which the items to choose from show no id, as if all were new.
        temperature: cosines are divided by it while the towers learn.
        validation_users: of so many users the newest event is set aside to stop early by, at most a tenth of them.
        max_grad_norm: gradient clip.
    """

    encoder_steps: int | None = None
    encoder_batch_size: int = 64
    encoder_learning_rate: float = 5e-5
    encoder_temperature: float = 0.15
    word_dropout: float = 0.0
    adversarial: float = 0.0
    tower_epochs: int = 8
    tower_max_steps: int | None = None
    tower_batch_size: int = 2048
    tower_learning_rate: float = 1e-3
    full_softmax_items: int = 20_000
    n_negatives: int = 4096
    n_hard: int = 1024
    hard_share: float = 0.2
    hard_margin: float = 0.1
    cold_share: float = 0.4
    temperature: float = 0.05
    validation_users: int = 1000
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("encoder_steps", "tower_max_steps", "tower_epochs", "n_hard", "validation_users", "adversarial"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"contrastive: {name}={value} must be 0 or more")
        for name in ("encoder_batch_size", "tower_batch_size", "n_negatives", "full_softmax_items"):
            if getattr(self, name) < 2:
                raise ValueError(f"contrastive: {name}={getattr(self, name)} must be at least 2")
        encoder, towers = ("encoder_learning_rate", "encoder_temperature"), ("tower_learning_rate", "temperature")
        for name in (*encoder, *towers, "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"contrastive: {name}={getattr(self, name)} must be positive")
        for name in ("word_dropout", "hard_share", "hard_margin", "cold_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"contrastive: {name}={getattr(self, name)} must lie in [0, 1)")

    def encoder_steps_on(self, device: str) -> int:
        """Steps on the text encoder for this device."""
        return _default(self.encoder_steps, device, cpu=250, gpu=3000)

    def tower_steps_on(self, device: str) -> int:
        """Most steps on the towers for this device."""
        return _default(self.tower_max_steps, device, cpu=450, gpu=20_000)


def _default(value: int | None, device: str, *, cpu: int, gpu: int) -> int:
    if value is not None:
        return value
    return cpu if device == "cpu" else gpu


def softmax_loss(
    users: Tensor,
    choices: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    log_expected: Tensor | None = None,
    masked: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Weighted mean of the cross-entropy of the taken item among all choices.

    Source: Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss" (softmax instead of one negative); Yi et al.
    2019, "Sampling-bias-corrected neural modeling", eq. 3 (logQ correction of choices that were drawn).

    Args:
        users: (n, dim) unit vectors.
        choices: (m, dim) unit vectors.
        targets: int64 (n,), column of the taken item.
        temperature: cosines are divided by it.
        log_expected: (m,), log of how often a choice is expected in a draw; None where all items are choices.
        masked: bool (n, m), choices that are no negatives; a target among them stays.
        weights: (n,), worth of each event, or None for 1; where all are 0 the loss is 0.
    """
    logits = ((users / temperature) @ choices.T).float()  # (n, m)
    if log_expected is not None:
        logits = logits - log_expected
    if masked is not None:
        logits.masked_fill_(masked.scatter(1, targets[:, None], False), MASKED)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)


def plan(sizes: npt.NDArray[np.int64], per_step: int, steps: int, *, seed: int) -> list[npt.NDArray[np.int64]]:
    """Row numbers for each step: rows of like size together, about `per_step` of size, each pass in a new order.

    Args:
        sizes: int64 (n,), positive.
        per_step: sum of the sizes in a step, about.
        steps: how many are wanted.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    batches: list[npt.NDArray[np.int64]] = []
    while len(batches) < steps and len(sizes):
        order = np.lexsort((rng.random(len(sizes)), sizes))
        padded = np.cumsum(sizes[order])
        epoch = [part for part in np.split(order, np.flatnonzero(np.diff(padded // per_step)) + 1) if len(part)]
        batches.extend(epoch[row] for row in rng.permutation(len(epoch)))
    return batches[:steps]
