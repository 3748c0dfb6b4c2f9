"""Training of both towers, in plain sight: first the text encoder, then the history encoder on top of it.

Owns the two losses and the two loops. Which interactions may be learnt from is the caller's business: everything
handed in is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from indexing.encoder import BiEncoder
from indexing.history import Histories, HistoryEncoder

MASKED = float("-inf")  # no NaN comes of it: a row's positive is never masked


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """How both towers are trained.

    Attributes:
        encoder_steps: gradient steps on the text encoder; None means 80 on a CPU and 2,000 on a GPU, 0 freezes it.
        encoder_batch_size: (history, next item) pairs a step; each pair's other columns are its negatives.
        encoder_learning_rate: peak, after a linear warm-up over a tenth of the steps.
        history_epochs: passes over all histories for the history encoder.
        history_max_steps: upper limit of gradient steps for the history encoder.
        history_batch_size: windows of `HistoryConfig.max_length` events a step.
        history_learning_rate: constant.
        n_negatives: items drawn uniformly a step; the whole catalogue where it is not larger.
        temperature: cosines are divided by it.
        max_grad_norm: gradient clip.
    """

    encoder_steps: int | None = None
    encoder_batch_size: int = 64
    encoder_learning_rate: float = 3e-5
    history_epochs: int = 10
    history_max_steps: int = 400
    history_batch_size: int = 64
    history_learning_rate: float = 1e-3
    n_negatives: int = 1024
    temperature: float = 0.05
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.encoder_steps is not None and self.encoder_steps < 0:
            raise ValueError(f"contrastive: encoder_steps={self.encoder_steps} must be 0 or more")
        if min(self.encoder_batch_size, self.history_batch_size, self.n_negatives) < 2:
            raise ValueError(f"contrastive: batch sizes and n_negatives must be at least 2, got {self}")
        if min(self.history_epochs, self.history_max_steps) < 0:
            raise ValueError(f"contrastive: history_epochs and history_max_steps must be 0 or more, got {self}")
        if min(self.encoder_learning_rate, self.history_learning_rate, self.temperature, self.max_grad_norm) <= 0:
            raise ValueError(f"contrastive: learning rates, temperature and max_grad_norm must be positive, got {self}")

    def steps_on(self, device: str) -> int:
        """Steps on the text encoder for this device."""
        if self.encoder_steps is not None:
            return self.encoder_steps
        return 80 if device == "cpu" else 2000


def in_batch_loss(
    anchors: Tensor, positives: Tensor, *, same: Tensor, log_frequency: Tensor, temperature: float
) -> Tensor:
    """Softmax over the batch's own positives, corrected for how often each item is drawn.

    Source: Yi et al. 2019, "Sampling-bias-corrected neural modeling", eq. 3 (logQ correction).

    Args:
        anchors: (batch, dim) unit vectors of the histories.
        positives: (batch, dim) unit vectors of the items taken next.
        same: bool (batch, batch), true where column `j` is no negative for row `i` (same text, or same user).
        log_frequency: (batch,) log of the share of training pairs that have this item as positive.
        temperature: see `ContrastiveConfig`.

    Returns:
        Mean loss, a scalar.
    """
    logits = anchors @ positives.T / temperature - log_frequency[None, :]  # (batch, batch)
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same & ~diagonal, MASKED)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def tune_encoder(
    encoder: BiEncoder,
    anchors: Sequence[str],
    positives: Sequence[str],
    users: npt.NDArray[np.int64],
    config: ContrastiveConfig,
    *,
    device: str,
    seed: int,
    progress: bool = False,
) -> int:
    """Fine-tune the text encoder on (history text, next item text) pairs, in place.

    Args:
        encoder: the item tower; its weights change.
        anchors: history texts, n_pairs.
        positives: texts of the items taken next, n_pairs.
        users: int64 (n_pairs,), who took it: pairs of one user are no negatives for each other.
        config: steps, batch size, learning rate, temperature.
        device: where the encoder lives.
        seed: of the order of the pairs and of dropout.
        progress: show a bar on stderr.

    Returns:
        Steps taken; 0 where there are not enough pairs for a batch or the config freezes the encoder.
    """
    batch_size = min(config.encoder_batch_size, len(anchors))
    steps = config.steps_on(device)
    if batch_size < 2 or steps == 0:
        return 0
    _, text_rows, counts = np.unique(np.asarray(positives, dtype=object), return_inverse=True, return_counts=True)
    log_frequency = torch.from_numpy(np.log(counts / len(positives)).astype(np.float32)).to(device)
    rows = torch.from_numpy(text_rows).to(device)
    owners = torch.from_numpy(users).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.encoder_learning_rate, weight_decay=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder.model.train()
        for step, batch in enumerate(
            tqdm(
                _batches(len(anchors), batch_size, steps, seed),
                desc="train text encoder",
                disable=not progress,
            )
        ):
            _warm_up(optimizer, config.encoder_learning_rate, step, steps)
            picked = torch.from_numpy(batch).to(device)
            same = (rows[picked][:, None] == rows[picked][None, :]) | (
                owners[picked][:, None] == owners[picked][None, :]
            )
            left = encoder.forward(encoder.token_features([anchors[i] for i in batch]))
            right = encoder.forward(encoder.token_features([positives[i] for i in batch]))
            loss = in_batch_loss(
                left,
                right,
                same=same,
                log_frequency=log_frequency[rows[picked]],
                temperature=config.temperature,
            )
            _step(optimizer, loss, list(encoder.parameters()), config.max_grad_norm)
        encoder.model.eval()
    return steps


def prefix_loss(users: Tensor, targets: Tensor, negatives: Tensor, *, masked: Tensor, temperature: float) -> Tensor:
    """Sampled softmax of each prefix's next item against shared uniform negatives.

    Source: Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss" (softmax over sampled negatives for SASRec).

    Args:
        users: (n, dim) unit user vectors, one for each prefix.
        targets: (n, dim) unit vectors of the items that came next.
        negatives: (m, dim) unit vectors.
        masked: bool (n, m), true where a negative is none: it has the target's text, or that
            user took it in the same window.
        temperature: see `ContrastiveConfig`.

    Returns:
        Mean loss, a scalar.
    """
    positive = (users * targets).sum(dim=-1, keepdim=True) / temperature  # (n, 1)
    negative = (users @ negatives.T / temperature).masked_fill(masked, MASKED)  # (n, m)
    return (torch.logsumexp(torch.cat([positive, negative], dim=1), dim=1) - positive[:, 0]).mean()


def train_history_encoder(
    encoder: HistoryEncoder,
    histories: Histories,
    item_vectors: npt.NDArray[np.float32],
    text_rows: npt.NDArray[np.int64],
    config: ContrastiveConfig,
    *,
    device: str,
    seed: int,
    progress: bool = False,
) -> int:
    """Train the history encoder on every prefix of every history, in place; the item vectors stay as they are.

    Args:
        encoder: the user tower, on `device`; its weights change.
        histories: n_users histories.
        item_vectors: float32 (n_items, dim), unit length.
        text_rows: int64 (n_items,), equal for items with equal text: these are never each other's negatives.
        config: epochs, batch size, learning rate, negatives, temperature.
        device: where the encoder lives.
        seed: of the order, the negatives and dropout.
        progress: show a bar on stderr.

    Returns:
        Steps taken; 0 where no history has two events.
    """
    windows = _windows(histories, encoder.config.max_length)  # (n_windows, max_length + 1)
    batch_size = min(config.history_batch_size, len(windows))
    steps = min(config.history_max_steps, config.history_epochs * -(-len(windows) // max(batch_size, 1)))
    if len(windows) == 0 or steps == 0:
        return 0
    vectors = torch.from_numpy(item_vectors).to(device)
    texts = torch.from_numpy(text_rows).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=config.history_learning_rate, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder.train()
        for batch in tqdm(
            _batches(len(windows), batch_size, steps, seed),
            desc="train history encoder",
            disable=not progress,
        ):
            rows = torch.from_numpy(windows[batch]).to(device)  # (batch, length + 1), -1 pads on the right
            negatives = torch.from_numpy(_negatives(rng, len(item_vectors), config.n_negatives)).to(device)
            known = rows[:, 1:] >= 0
            users = encoder(vectors[rows[:, :-1].clamp(min=0)])[known]  # (n, dim)
            targets = rows[:, 1:][known]  # (n,)
            taken = (rows[:, :, None] == negatives).any(dim=1)  # (batch, m)
            owner = torch.nonzero(known)[:, 0]
            masked = taken[owner] | (texts[targets][:, None] == texts[negatives][None, :])
            loss = prefix_loss(
                users, vectors[targets], vectors[negatives], masked=masked, temperature=config.temperature
            )
            _step(optimizer, loss, list(encoder.parameters()), config.max_grad_norm)
        encoder.eval()
    return steps


def _windows(histories: Histories, length: int) -> npt.NDArray[np.int64]:
    """Histories cut into windows of `length + 1` events that share one event, padded with -1 on the right."""
    windows = []
    for user in range(len(histories)):
        rows = histories.of(user)
        for start in range(0, len(rows) - 1, length):
            window = np.full(length + 1, -1, dtype=np.int64)
            piece = rows[start : start + length + 1]
            window[: len(piece)] = piece
            windows.append(window)
    return np.stack(windows) if windows else np.zeros((0, length + 1), dtype=np.int64)


def _negatives(rng: np.random.Generator, n_items: int, n_negatives: int) -> npt.NDArray[np.int64]:
    if n_items <= n_negatives:
        return np.arange(n_items)
    return rng.integers(0, n_items, size=n_negatives)


def _batches(n: int, batch_size: int, steps: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """`steps` batches of row numbers, each pass in a new order, every batch full."""
    rng = np.random.default_rng(seed)
    per_epoch = n // batch_size
    epochs = -(-steps // per_epoch)
    orders = [rng.permutation(n)[: per_epoch * batch_size].reshape(per_epoch, batch_size) for _ in range(epochs)]
    return list(np.concatenate(orders)[:steps])


def _warm_up(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over the first tenth of the steps, then linear decay to zero."""
    warm = max(1, steps // 10)
    scale = min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    for group in optimizer.param_groups:
        group["lr"] = peak * scale


def _step(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: list[torch.nn.Parameter], max_grad_norm: float
) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
