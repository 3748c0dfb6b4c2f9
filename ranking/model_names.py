"""What a LightGBM model calls its features, so that a model and a list of names that do not belong together are found.

Owns the spelling. The names that callers use stay beside the model: LightGBM refuses or changes some of them.
"""

import re
from collections.abc import Sequence
from typing import Any

_FOREIGN = re.compile(r"[^\w.-]")


def model_names(features: Sequence[str]) -> list[str]:
    """One name a feature, made of its place and its own name; no two are alike."""
    return [f"{place}_{_FOREIGN.sub('_', name)}" for place, name in enumerate(features)]


def check_model(booster: Any, features: Sequence[str], what: str) -> None:
    """Refuse a model that was trained on other features, or on the same in another order.

    A model without names of its own (LightGBM's `Column_0`, ...) is only counted.

    Args:
        booster: as loaded.
        features: what rows are read by.
        what: how messages call it.

    Raises:
        ValueError: the first features that differ.
    """
    trained, read = booster.feature_name(), model_names(features)
    if trained == [f"Column_{place}" for place in range(len(trained))]:
        read = [f"Column_{place}" for place in range(len(features))]
    if trained != read:
        wrong = [pair for pair in zip(trained, read, strict=False) if pair[0] != pair[1]][:3]
        raise ValueError(
            f"{what}: the model was trained on {len(trained)} features and is read with {len(read)}, or in another "
            f"order; first that differ: {wrong}"
        )
