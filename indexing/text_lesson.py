"""The text encoder's lesson: tell from an item's text alone which items are taken by the same people.

Owns targets, loss and validation of that training; `indexing/contrastive.py` owns its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from indexing.augmentation import add_adversarial_gradients, augment
from indexing.contrastive import ContrastiveConfig, plan
from indexing.encoder import BiEncoder
from indexing.item_tower import factors_of
from indexing.training import Lesson, train
from indexing.training_config import TrainingConfig
from indexing.tuning_scope import Tuning, TuningConfig, with_scope

HEAD_DIM = 128
HEAD_LEARNING_RATE = 1e-3
MOST_START_TEXTS = 4096  # tell where the projection starts
RIDGE = 1e-3  # per text, in that regression
VALIDATION_SHARE = 0.05
MOST_VALIDATION_TEXTS = 512
FEWEST_TEXTS = 8


def tune_encoder(
    encoder: BiEncoder,
    texts: Sequence[str],
    behaviour: sp.csr_matrix,
    config: ContrastiveConfig,
    *,
    tuning: TuningConfig,
    training: TrainingConfig,
    device: str,
    seed: int,
    max_seconds: float | None = None,
    progress: bool = False,
) -> int:
    """Fine-tune the text encoder in place, so that texts of items that are taken together lie close.

    Each text's vector must tell, among all texts with behaviour, those that it is taken together with: a softmax over
    the whole catalogue against one learnt vector for each text, which starts from a truncated SVD of the behaviour. The
    projection between both starts from a regression.

    Args:
        encoder: its weights change.
        texts: distinct texts, n_texts.
        behaviour: CSR (n_texts, n_texts), larger where items with these texts are taken together.
        config: steps, batch size, learning rate, temperature.
        tuning: which weights may change.
        training: precision, early stopping, logs.
        device: where the encoder lives.
        seed: of order, dropout and start.
        max_seconds: wall-clock limit, or None.
        progress: show a bar on stderr.

    Returns:
        Steps taken; 0 where there is too little behaviour or the encoder is frozen.

    Raises:
        ValueError, ImportError: settings that cannot work with this encoder, or need what is not installed.
    """
    together = sp.csr_matrix(behaviour + behaviour.T)
    known = np.flatnonzero(np.diff(together.indptr) > 0)
    steps = config.encoder_steps_on(device)
    if len(known) < FEWEST_TEXTS or steps == 0:
        return 0
    with with_scope(encoder, tuning, steps=steps, seed=seed, seconds=max_seconds) as scope:
        if not scope.parameters:
            return 0
        if config.adversarial and not encoder.word_embeddings().weight.requires_grad:
            name = tuning.scope_on(device, max_seconds)
            raise ValueError(
                f"contrastive: adversarial={config.adversarial} pushes word embeddings, which tuning.scope={name!r} "
                "does not train; set scope='full', or adversarial=0"
            )
        lesson = TextLesson(encoder, texts, together, known, config, scope, seed=seed, progress=progress)
        lengths = np.minimum([len(texts[row]) for row in lesson.learnt], 400).astype(np.int64)
        batches = plan(lengths // 8 + 1, int(config.encoder_batch_size * (lengths // 8 + 1).mean()), steps, seed=seed)
        return train(
            lesson, [lesson.learnt[batch] for batch in batches], training, name="train text encoder", device=device,
            seed=seed, max_seconds=max_seconds, max_grad_norm=config.max_grad_norm, progress=progress,
        )  # fmt: skip


class TextLesson(Lesson):
    """Encoder, a projection, and a vector for each text with behaviour.

    Attributes:
        learnt: int64, the texts that are learnt from; a few others are set aside, unseen, to stop early by.
    """

    def __init__(
        self,
        encoder: BiEncoder,
        texts: Sequence[str],
        together: sp.csr_matrix,
        known: NDArray[np.int64],
        config: ContrastiveConfig,
        scope: Tuning,
        *,
        seed: int,
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.body = encoder.model
        self._encoder, self._texts, self._config, self._scope = [encoder], texts, config, scope
        self._rng = np.random.default_rng(seed)
        self._read: tuple[dict[str, Tensor], NDArray[np.int64]]
        generator = torch.Generator().manual_seed(seed)
        columns = together[:, known]
        totals = np.maximum(np.asarray(columns.sum(axis=1)).ravel(), 1e-12)
        self._shares = sp.csr_matrix(sp.diags_array(1.0 / totals) @ columns)
        start = torch.from_numpy(factors_of(sp.csr_matrix(columns[known]), HEAD_DIM, seed=seed, progress=progress))
        noise = 1e-2 * torch.randn(len(known), HEAD_DIM, generator=generator) / HEAD_DIM**0.5
        self.behaviour = nn.Parameter(functional.pad(start, (0, HEAD_DIM - start.shape[1])) + noise)
        n_aside = min(MOST_VALIDATION_TEXTS, int(VALIDATION_SHARE * len(known)))
        shuffled = self._rng.permutation(len(known))
        self.aside, self.learnt = known[shuffled[:n_aside]], known[np.sort(shuffled[n_aside:])]
        told_by = shuffled[n_aside:][:MOST_START_TEXTS]
        self.head = nn.Parameter(self._start_of_head(known, told_by, progress=progress))

    @torch.no_grad()
    def _start_of_head(self, known: NDArray[np.int64], places: NDArray[np.int64], *, progress: bool) -> Tensor:
        """From the untouched encoder's vectors to behaviour, (HEAD_DIM, dim), by ridge regression on some learnt texts.

        A projection drawn at random would first pull the encoder anywhere: what it has learnt elsewhere is lost before
        there is anything to follow (Kumar et al. 2022, "Fine-tuning can distort pretrained features").
        """
        texts = [self._texts[row] for row in known[places]]
        vectors = torch.from_numpy(self._encoder[0].encode(texts, progress=progress)).double()
        targets = functional.normalize(self.behaviour[places], dim=1).double()
        penalty = RIDGE * len(places) * torch.eye(vectors.shape[1], dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(vectors.T @ vectors + penalty, vectors.T @ targets)
        return solved.T.float()

    def groups(self) -> list[dict[str, Any]]:
        """See `Lesson`."""
        fresh = [self.behaviour, self.head]
        return [
            {"params": self._scope.parameters, "lr": self._config.encoder_learning_rate},
            {"params": fresh, "lr": HEAD_LEARNING_RATE},
        ]

    def step_loss(self, rows: NDArray[np.int64], step: int) -> Tensor:
        """See `Lesson`."""
        texts = [self._texts[row] for row in rows]
        if self._config.word_dropout:
            texts = augment(texts, self._rng, self._config.word_dropout)
        self._read = self._encoder[0].token_features(texts), rows
        return self._loss(*self._read)

    def on_after_backward(self) -> None:
        """Called by Lightning."""
        if self._config.adversarial:
            add_adversarial_gradients(
                self._encoder[0], lambda: self._loss(*self._read), epsilon=self._config.adversarial
            )

    def validation_loss(self) -> float | None:
        """See `Lesson`: the loss of texts that were never learnt from."""
        if not len(self.aside):
            return None
        blocks = np.array_split(self.aside, -(-len(self.aside) // 128))
        losses = [
            float(self._loss(self._encoder[0].token_features([self._texts[row] for row in block]), block)) * len(block)
            for block in blocks
        ]
        return sum(losses) / len(self.aside)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning; AdaLoRA moves rank after a step."""
        self._scope.after_step(self.global_step)

    def _loss(self, features: dict[str, Tensor], rows: NDArray[np.int64]) -> Tensor:
        """Cross-entropy between what is taken together with these texts and what their vectors say."""
        said = self._encoder[0].forward(features) @ self.head.T
        vectors = functional.normalize(said.float(), dim=1)  # (batch, HEAD_DIM)
        behaviour = functional.normalize(self.behaviour, dim=1)  # (n_known, HEAD_DIM)
        logits = (vectors @ behaviour.T).float() / self._config.encoder_temperature
        shares = torch.from_numpy(self._shares[rows].toarray().astype(np.float32)).to(logits.device)
        return -(shares * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
