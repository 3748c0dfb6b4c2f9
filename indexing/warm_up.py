"""Self-supervised warm-up of the text encoder on the catalogue's own text, before any behaviour is learnt.

Owns the objectives and their loop. Does not own what happens with interactions afterwards (`text_lesson`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from indexing.encoder import BiEncoder
from indexing.teacher import Teacher

Objective = Literal["none", "simcse", "pairs", "distill", "pairs+distill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpConfig:
    """How the encoder is warmed up.

    Attributes:
        objective: "simcse" (a text against itself under another dropout), "pairs" (two texts of one item, as title
            and description), "distill" (similarities of a frozen teacher), "pairs+distill" (their sum), or "none".
        steps: gradient steps, at most.
        max_seconds: stop after the step that passes it; None for no limit. With a limit the result depends on the
            machine's speed.
        batch_size: texts, or pairs, a step.
        learning_rate: peak, after a linear warm-up over a tenth of the steps; then linear to zero.
        embedding_learning_rate: the same for the word embeddings, of which new ones have everything to learn.
        temperature: cosines are divided by it.
        n_teacher_texts: texts that the teacher reads, drawn at random.
        max_grad_norm: gradient clip.
    """

    objective: Objective = "pairs"
    steps: int = 200
    max_seconds: float | None = None
    batch_size: int = 64
    learning_rate: float = 1e-4
    embedding_learning_rate: float = 3e-3
    temperature: float = 0.05
    n_teacher_texts: int = 2000
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ValueError(f"warm-up: objective={self.objective!r} is unknown; known are {get_args(Objective)}")
        if self.steps < 0:
            raise ValueError(f"warm-up: steps={self.steps} must be 0 or more")
        if min(self.batch_size, self.n_teacher_texts) < 2:
            raise ValueError(f"warm-up: batch_size and n_teacher_texts must be at least 2, got {self}")
        if min(self.learning_rate, self.embedding_learning_rate, self.temperature, self.max_grad_norm) <= 0:
            raise ValueError(f"warm-up: learning rates, temperature and max_grad_norm must be positive, got {self}")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"warm-up: max_seconds={self.max_seconds} must be positive")


BatchLoss = Callable[[np.random.Generator], Tensor]


def warm_up(
    encoder: BiEncoder,
    texts: Sequence[str],
    config: WarmUpConfig,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    teacher: Teacher | None = None,
    seed: int,
    progress: bool = False,
) -> int:
    """Warm the encoder up on texts alone, in place.

    Args:
        encoder: its weights change.
        texts: of the catalogue; what "simcse" and "distill" read.
        config: objective, steps and rates.
        pairs: two texts of one item each, for "pairs".
        teacher: for "distill": n texts -> (n, any dim) vectors; called once.
        seed: of the order, the teacher's sample and dropout.
        progress: show a bar on stderr.

    Returns:
        Steps taken; 0 where there is nothing to learn from, or the objective is "none".

    Raises:
        ValueError: the objective wants pairs or a teacher and got none.
    """
    rng = np.random.default_rng(seed)
    parts = [] if config.steps == 0 else _losses(encoder, texts, config, pairs, teacher, rng)
    if not parts:
        return 0
    optimizer = _optimizer(encoder, config)
    started = time.monotonic()
    device = torch.device(encoder.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        encoder.model.train()
        taken = 0
        for step in tqdm(range(config.steps), desc="warm up", disable=not progress, mininterval=1.0):
            spent = max(step / config.steps, (time.monotonic() - started) / (config.max_seconds or math.inf))
            if spent >= 1:
                break
            _set_rates(optimizer, spent)
            _step(optimizer, [loss(rng) for loss in parts], encoder, config)
            taken += 1
        encoder.model.eval()
    return taken


def _losses(
    encoder: BiEncoder,
    texts: Sequence[str],
    config: WarmUpConfig,
    pairs: Sequence[tuple[str, str]] | None,
    teacher: Teacher | None,
    rng: np.random.Generator,
) -> list[BatchLoss]:
    distinct = sorted(set(texts) - {""})
    wanted = config.objective.split("+")
    losses: list[BatchLoss] = []
    if "simcse" in wanted and len(distinct) >= 2:
        losses.append(
            lambda rng: _simcse_loss(encoder, [distinct[row] for row in _draw(len(distinct), config, rng)], config)
        )
    if "pairs" in wanted:
        if pairs is None:
            raise ValueError(f"warm-up: objective={config.objective!r} needs pairs of texts")
        usable = [pair for pair in pairs if all(pair) and pair[0] != pair[1]]
        if len(usable) >= 2:
            losses.append(
                lambda rng: _pair_loss(encoder, [usable[row] for row in _draw(len(usable), config, rng)], config)
            )
    if "distill" in wanted:
        if teacher is None:
            raise ValueError(f"warm-up: objective={config.objective!r} needs a teacher")
        if len(distinct) >= 2:
            size = min(config.n_teacher_texts, len(distinct))
            sample = [distinct[row] for row in rng.choice(len(distinct), size, replace=False)]
            taught = torch.from_numpy(np.asarray(teacher(sample), dtype=np.float32)).to(encoder.device)
            losses.append(lambda rng: _distill_loss(encoder, sample, taught, config, rng))
    return losses


def _draw(n: int, config: WarmUpConfig, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(n, min(config.batch_size, n), replace=False)


def _simcse_loss(encoder: BiEncoder, texts: Sequence[str], config: WarmUpConfig) -> Tensor:
    """A text must find itself, under another dropout (Source: Gao et al. 2021, "SimCSE", eq. 4)."""
    features = encoder.token_features(texts)
    left, right = encoder.forward(features), encoder.forward(features)  # (batch, dim)
    return _softmax_loss(left @ right.T / config.temperature)


def _pair_loss(encoder: BiEncoder, pairs: Sequence[tuple[str, str]], config: WarmUpConfig) -> Tensor:
    """Each text must find the other of its item among the batch's, in both directions."""
    left = encoder.forward(encoder.token_features([left for left, _ in pairs]))  # (batch, dim)
    right = encoder.forward(encoder.token_features([right for _, right in pairs]))
    logits = left @ right.T / config.temperature
    return (_softmax_loss(logits) + _softmax_loss(logits.T)) / 2


def _distill_loss(
    encoder: BiEncoder, texts: Sequence[str], taught: Tensor, config: WarmUpConfig, rng: np.random.Generator
) -> Tensor:
    """Each text's similarities to the batch's others must be the teacher's.

    Works whatever the teacher's dimension. Source: Fang et al. 2021, "SEED", eq. 5, with the batch as the queue.
    """
    rows = _draw(len(texts), config, rng)
    vectors = encoder.forward(encoder.token_features([texts[row] for row in rows]))  # (batch, dim)
    teacher = functional.normalize(taught[torch.from_numpy(rows).to(taught.device)], dim=1)
    own = torch.eye(len(rows), dtype=torch.bool, device=vectors.device)
    student = (vectors @ vectors.T / config.temperature).masked_fill(own, -1e4)  # (batch, batch)
    target = (teacher @ teacher.T / config.temperature).masked_fill(own, -1e4)
    return functional.cross_entropy(student, target.softmax(dim=1))


def _softmax_loss(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _optimizer(encoder: BiEncoder, config: WarmUpConfig) -> torch.optim.Optimizer:
    words = [weight for name, weight in encoder.model.named_parameters() if name.endswith("word_embeddings.weight")]
    rest = [weight for weight in encoder.parameters() if all(weight is not table for table in words)]
    return torch.optim.AdamW(
        [
            {"params": rest, "peak": config.learning_rate, "weight_decay": 0.01},
            {"params": words, "peak": config.embedding_learning_rate, "weight_decay": 0.0},
        ]
    )


def _set_rates(optimizer: torch.optim.Optimizer, spent: float) -> None:
    """Linear warm-up over the first tenth of what may be spent, then linear decay to zero."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min((spent + 0.01) / 0.1, (1 - spent) / 0.9)


def _step(optimizer: torch.optim.Optimizer, losses: Sequence[Tensor], encoder: BiEncoder, config: WarmUpConfig) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(torch.stack(list(losses)).sum())
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.max_grad_norm)
    optimizer.step()
