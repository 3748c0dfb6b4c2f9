"""Harder training examples for the text encoder: texts with gaps, and embeddings pushed the wrong way.

Owns both transformations. Does not own when they are used (`text_lesson`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from indexing.encoder import BiEncoder
from indexing.lexical import UNSPACED

# Joined, they make up the text: single characters of unspaced scripts, and words with the space after them.
_PIECE = re.compile(rf"[{UNSPACED}]\s*|[^\s{UNSPACED}]+\s*")


def augment(texts: Sequence[str], rng: np.random.Generator, share: float, *, separator: str = ". ") -> list[str]:
    """Drop fields and words of each text at random; something always remains of a text that had something.

    A field is what lies between two separators; the first, the title, stays. Of scripts without spaces single
    characters are dropped.

    Args:
        texts: n texts.
        rng: the source of chance.
        share: probability of each field, and then of each word, to be dropped, in 0..1.
        separator: of the fields, as the caller joined them.

    Returns:
        n texts.

    Raises:
        ValueError: `share` is not in 0..1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"augment: share={share} must lie in 0..1")
    return [_thinned(text, rng, share, separator) for text in texts] if share else list(texts)


def _thinned(text: str, rng: np.random.Generator, share: float, separator: str) -> str:
    title, *fields = text.split(separator)
    kept = [title, *(field for field in fields if rng.random() >= share)]
    return separator.join(_without_words(field, rng, share) for field in kept)


def _without_words(field: str, rng: np.random.Generator, share: float) -> str:
    words = _PIECE.findall(field)
    if not words:
        return field
    kept = rng.random(len(words)) >= share
    kept[rng.integers(len(words))] = True
    return "".join(word for word, keep in zip(words, kept, strict=True) if keep).strip()


def add_adversarial_gradients(encoder: BiEncoder, compute: Callable[[], Tensor], *, epsilon: float) -> Tensor:
    """Add the gradients of the loss after the word embeddings were pushed in the direction that hurts most.

    To be called between `loss.backward()`, whose gradients say which direction that is, and the optimiser's step.
    Source: Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification", eq. 5, with
    the gradient summed over the batch ("FGM").

    Args:
        encoder: whose word embeddings are pushed; its weights stay as they are.
        compute: repeats the forward pass and returns its loss, a scalar.
        epsilon: length of the push over the whole embedding table (Frobenius norm).

    Returns:
        The adversarial loss, a scalar without graph.

    Raises:
        ValueError: `epsilon` is not positive.
        RuntimeError: the word embeddings have no gradient.
    """
    if epsilon <= 0:
        raise ValueError(f"adversarial: epsilon={epsilon} must be positive")
    table = encoder.word_embeddings()
    if table.weight.grad is None:
        raise RuntimeError("adversarial: the word embeddings have no gradient; call loss.backward() first")
    gradient = table.weight.grad
    with _pushed(table, epsilon * gradient / gradient.norm().clamp(min=1e-12)):
        loss = compute()
        torch.autograd.backward(loss)
    return loss.detach()


@contextmanager
def _pushed(table: nn.Embedding, push: Tensor) -> Iterator[None]:
    """The table's outputs shifted by the push of their rows, while the weights themselves stay."""
    handle = table.register_forward_hook(
        lambda module, inputs, output: output + nn.functional.embedding(inputs[0], push)
    )
    try:
        yield
    finally:
        handle.remove()
