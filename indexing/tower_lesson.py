"""The towers' lesson: from what a user took so far, tell what he takes next.

Owns windows, negatives, loss and validation of the joint training of item tower and history encoder;
`indexing/contrastive.py` owns its settings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexing.contrastive import MASKED, ContrastiveConfig, plan, softmax_loss
from indexing.history import Histories, HistoryEncoder, gap_buckets
from indexing.item_tower import ItemFeatures, ItemTower, TowerInput
from indexing.training import Lesson, train
from indexing.training_config import TrainingConfig

VALIDATION_USERS_SHARE = 0.1
FEWEST_EVENTS = 3  # of a user whose newest event may be set aside
MOST_BESIDE = 1000  # events on either side of a window whose items are no negatives either
POOL = 4  # the hardest negatives are looked for among so many times as many


def train_towers(
    tower: ItemTower,
    encoder: HistoryEncoder,
    histories: Histories,
    features: ItemFeatures,
    config: ContrastiveConfig,
    *,
    training: TrainingConfig,
    device: str,
    seed: int,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    progress: bool = False,
) -> int:
    """Train item tower and history encoder together on every prefix of every history, in place.

    Args:
        tower: started; its weights change.
        encoder: the user tower; its weights change.
        histories: n_users histories.
        features: of the items.
        config: epochs, batch size, learning rate, negatives, temperature.
        training: precision, early stopping, logs.
        device: where to train; both come back there.
        seed: of order, negatives and dropout.
        max_steps: fewer than the configuration allows, or None. With it nothing is set aside to stop early by.
        max_seconds: wall-clock limit, or None.
        progress: show a bar on stderr.

    Returns:
        Steps after which the weights that were kept stood; 0 where no history has two events.
    """
    aside = _set_aside(histories, config, seed) if max_steps is None else np.zeros(0, dtype=np.int64)
    learnt = histories.without_last(aside)
    windows, lengths = _windows(learnt, encoder.config.max_length)
    wanted = config.tower_steps_on(device) if max_steps is None else max_steps
    per_epoch = max(1, int(np.ceil(lengths.sum() / config.tower_batch_size))) if len(lengths) else 0
    steps = min(wanted, config.tower_epochs * per_epoch)
    batches = plan(lengths, config.tower_batch_size, steps, seed=seed)
    lesson = TowerLesson(tower, encoder, learnt, windows, features, config, device=device, seed=seed, steps=steps)
    lesson.set_aside(histories, aside)
    return train(
        lesson, batches, training, name="train towers", device=device, seed=seed, max_seconds=max_seconds,
        max_grad_norm=config.max_grad_norm, progress=progress,
    )  # fmt: skip


class TowerLesson(Lesson):
    """Both towers and what they learn from."""

    warm_up = 0.1

    def __init__(
        self,
        tower: ItemTower,
        encoder: HistoryEncoder,
        histories: Histories,
        windows: NDArray[np.int64],
        features: ItemFeatures,
        config: ContrastiveConfig,
        *,
        device: str,
        seed: int,
        steps: int,
    ) -> None:
        super().__init__()
        self.tower, self.encoder = tower, encoder
        self._config, self._windows, self._on = config, windows, device
        self._spans = _spans(windows, histories.offsets)
        self._features = TowerInput.of(features, device)
        self._rng = np.random.default_rng(seed)
        self._n_items = len(features)
        self._share = torch.from_numpy(_shares(histories, self._n_items)).to(device)
        self._events = Events.of(histories, device)
        self._aside: tuple[Events, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._hard_from = int((1.0 - config.hard_share) * steps)

    def set_aside(self, histories: Histories, users: NDArray[np.int64]) -> None:
        """Take the newest event of these users to measure the validation loss."""
        if len(users):
            positions, there = histories.newest(self.encoder.config.max_length + 1)
            windows = np.where(there, positions, -1)[users]
            self._aside = Events.of(histories, self._on), windows, _spans(windows, histories.offsets)

    def groups(self) -> list[dict[str, Any]]:
        """See `Lesson`."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return [{"params": weights, "lr": self._config.tower_learning_rate}]

    def step_loss(self, rows: NDArray[np.int64], step: int) -> Tensor:
        """See `Lesson`."""
        windows = self._windows[rows]
        windows = windows[:, : int((windows >= 0).sum(axis=1).max())]
        users, targets, owners = self._users(self._events, windows)
        cold = self._rng.random() < self._config.cold_share
        choices, log_expected = self._choices(targets.items, users, cold=cold, hard=step >= self._hard_from)
        vectors = self.tower(self._features, choices, residual=not cold)
        return softmax_loss(
            users, vectors, torch.searchsorted(choices, targets.items), temperature=self._config.temperature,
            log_expected=log_expected, masked=self._taken(self._events, self._spans[rows], choices)[owners],
            weights=targets.weights,
        )  # fmt: skip

    def validation_loss(self) -> float | None:
        """See `Lesson`: 1 - ndcg of the newest event of the users set aside, among all items or a fixed draw of them.

        The softmax's own loss rises long before the order of the items gets worse.
        """
        if self._aside is None:
            return None
        events, windows, spans = self._aside
        users, targets, owners = self._users(events, windows, last=True)
        everything = self._n_items <= self._config.full_softmax_items
        draw = np.random.default_rng(0).integers(self._n_items, size=self._config.full_softmax_items)
        rows = torch.arange(self._n_items) if everything else torch.from_numpy(draw)
        choices = torch.unique(torch.cat([rows.to(self._on), targets.items]))
        scores = users @ self.tower(self._features, choices).T
        where = torch.searchsorted(choices, targets.items)
        taken = scores.gather(1, where[:, None])
        scores.masked_fill_(self._taken(events, spans, choices)[owners], MASKED)
        places = (scores > taken).sum(dim=1)
        return 1.0 - float((1.0 / torch.log2(2.0 + places)).mean())

    def _users(
        self, events: Events, windows: NDArray[np.int64], *, last: bool = False
    ) -> tuple[Tensor, Events, Tensor]:
        """User vectors (n, dim), the events that came next, and the window of each; only each window's last if asked.

        Args:
            events: of all users.
            windows: int64 (batch, length + 1), positions of events, -1 pads on the right.
            last: only the last event of each window.
        """
        positions = torch.from_numpy(windows).to(self._on)
        known = positions[:, 1:] >= 0
        if last:
            known = known & (known.sum(dim=1, keepdim=True) == torch.arange(1, known.shape[1] + 1, device=self._on))
        read = events.at(positions[:, :-1].clamp(min=0))
        rows, inverse = torch.unique(read.items, return_inverse=True)
        vectors = self.tower(self._features, rows)[inverse]  # (batch, length, dim)
        users = self.encoder(vectors, read.event_rows, read.gaps)[known]
        return users, events.at(positions[:, 1:][known]), torch.nonzero(known)[:, 0]

    def _choices(self, targets: Tensor, users: Tensor, *, cold: bool, hard: bool) -> tuple[Tensor, Tensor | None]:
        """Rows of the items to choose from, ascending, and log of how often each is expected among them."""
        if self._n_items <= self._config.full_softmax_items:
            return torch.arange(self._n_items, device=self._on), None
        drawn = self._draw(self._config.n_negatives)
        if hard and self._config.n_hard:
            drawn = torch.cat([drawn[: -self._config.n_hard], self._hardest(targets, users, cold=cold)])
        choices = torch.unique(torch.cat([targets, drawn]))
        expected = self._config.n_negatives / self._n_items + len(targets) * self._share[choices]
        return choices, torch.log(expected)

    def _draw(self, n: int) -> Tensor:
        return torch.from_numpy(self._rng.integers(self._n_items, size=n)).to(self._on)

    @torch.no_grad()
    def _hardest(self, targets: Tensor, users: Tensor, *, cold: bool) -> Tensor:
        """Of a larger draw, the items that score best for most users of the batch without being likely positives."""
        pool = torch.unique(self._draw(POOL * self._config.n_negatives))
        scores = users @ self.tower(self._features, pool, residual=not cold).T  # (n, pool)
        rows, inverse = torch.unique(targets, return_inverse=True)
        taken = (users * self.tower(self._features, rows, residual=not cold)[inverse]).sum(dim=1, keepdim=True)
        scores = scores.masked_fill(scores > (1.0 - self._config.hard_margin) * taken, -1.0)
        best = scores.topk(min(8, len(pool)), dim=1).indices.flatten()
        often = torch.bincount(best, minlength=len(pool))
        hardest: Tensor = pool[often.topk(min(self._config.n_hard, len(pool))).indices]
        return hardest

    def _taken(self, events: Events, spans: NDArray[np.int64], choices: Tensor) -> Tensor:
        """Which of the choices the user of each window took, in it, before or after, bool (n_windows, n_choices)."""
        starts, ends = torch.from_numpy(spans).to(self._on).T[:, :, None]
        positions = starts + torch.arange(int(np.ptp(spans, axis=1).max()), device=self._on)
        items = events.items[torch.minimum(positions, ends - 1)]
        columns = torch.searchsorted(choices, items).clamp(max=len(choices) - 1)
        rows, places = torch.nonzero(choices[columns] == items, as_tuple=True)
        taken = torch.zeros((len(spans), len(choices)), dtype=torch.bool, device=self._on)
        taken[rows, columns[rows, places]] = True
        return taken


class Events:
    """Events as tensors, each of the same shape: item rows, kinds, gaps and weights; None where not known."""

    def __init__(self, items: Tensor, event_rows: Tensor | None, gaps: Tensor | None, weights: Tensor | None) -> None:
        self.items, self.event_rows, self.gaps, self.weights = items, event_rows, gaps, weights

    @classmethod
    def of(cls, histories: Histories, device: str) -> Events:
        """Copy to the device, each (n_events,)."""
        kinds = None if histories.event_rows is None else histories.event_rows.astype(np.int64)
        parts = (histories.item_rows.astype(np.int64), kinds, gap_buckets(histories), histories.weights)
        return cls(*(None if part is None else torch.tensor(part, device=device) for part in parts))  # type: ignore[arg-type]

    def at(self, positions: Tensor) -> Events:
        """The events at these positions, of the shape of `positions`."""
        parts = (self.event_rows, self.gaps, self.weights)
        return Events(self.items[positions], *(None if part is None else part[positions] for part in parts))


def _set_aside(histories: Histories, config: ContrastiveConfig, seed: int) -> NDArray[np.int64]:
    """Users whose newest event is kept out of training."""
    known = np.flatnonzero(histories.lengths >= FEWEST_EVENTS)
    n = min(config.validation_users, int(VALIDATION_USERS_SHARE * len(known)))
    return np.sort(np.random.default_rng(seed).permutation(known)[:n])


def _windows(histories: Histories, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of events in windows of `length + 1` that share one event, -1 pads on the right; events to predict."""
    n_windows = np.maximum(0, -(-(histories.lengths - 1) // length))
    owner = np.repeat(np.arange(len(histories)), n_windows)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    starts = histories.offsets[owner] + place * length
    positions = starts[:, None] + np.arange(length + 1)
    there = positions < histories.offsets[owner + 1][:, None]
    return np.where(there, positions, -1), there.sum(axis=1) - 1


def _spans(windows: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the events of a window's user begin and end that lie in it or beside it, (n_windows, 2)."""
    first, after = windows[:, 0], windows[:, 0] + windows.shape[1]
    user = np.searchsorted(offsets, first, side="right") - 1
    starts = np.maximum(offsets[user], first - MOST_BESIDE)
    return np.stack([starts, np.minimum(offsets[user + 1], after + MOST_BESIDE)], axis=1)


def _shares(histories: Histories, n_items: int) -> NDArray[np.float32]:
    """Share of the events that each item has, float32 (n_items,)."""
    counts = np.bincount(histories.item_rows, minlength=n_items)
    return np.asarray(counts / max(1, counts.sum()), dtype=np.float32)
