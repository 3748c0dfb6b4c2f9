"""Fits of our recommender that follow one another and learn stage 1 once.

Owns which fits may share. Each is what `Recommender.fit` learns, to the bit, and is said to have taken what all its
steps took, whoever ran them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial

import polars as pl

from recsys import pipeline
from recsys.config import RecommenderConfig
from recsys.device import resolve_device
from recsys.pipeline import FirstStage, Renewed, first_stage_settings
from recsys.profiling import Usage, metered
from recsys.recommender import Recommender
from recsys.schema import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """Our recommender, fitted on train.

    Attributes:
        recommender: ready to be asked.
        fit: what its steps took.
        reads_interest: whether its ranker reads the interest score.
    """

    recommender: Recommender
    fit: Usage
    reads_interest: bool


@dataclass(frozen=True)
class _StageOne:
    """Stage 1, what it was learnt from, and what that took."""

    tables: tuple[pl.DataFrame, pl.DataFrame]
    config: RecommenderConfig
    first: FirstStage
    learning: Usage

    @cached_property
    def renewed(self) -> tuple[Renewed, Usage]:
        """The same as of the end; learnt when it is first asked for, after stage 2, as in a fit of its own."""
        return metered(partial(pipeline.renew_first_stage, self.first, self.config))

    def serves(self, tables: tuple[pl.DataFrame, pl.DataFrame], config: RecommenderConfig) -> bool:
        """Whether a fit on these tables with this configuration would learn the same."""
        same = all(mine.equals(other) for mine, other in zip(self.tables, tables, strict=True))
        return same and first_stage_settings(config) == first_stage_settings(self.config)


class SharedFits:
    """Fits in a row; one that differs from the last only in what stage 1 does not read takes over its stage 1.

    Example:
        >>> fits = SharedFits()
        >>> whole = fits.fit(interactions, items, config)
        >>> plain = fits.fit(interactions, items, replace(config, n_interest=0))
    """

    def __init__(self) -> None:
        self._newest: _StageOne | None = None

    def fit(
        self,
        interactions: pl.DataFrame,
        items: pl.DataFrame,
        config: RecommenderConfig,
        users: pl.DataFrame | None = None,
    ) -> Ours:
        """What `Recommender(config).fit(interactions, items, users)` learns; `users` are the same at every call."""
        if self._newest is None or not self._newest.serves((interactions, items), config):
            self._newest = None  # makes room for the next
            self._newest = _stage_one(interactions, items, users, config)
        stage = self._newest
        learnt, second = metered(partial(pipeline.learn_second_stage, stage.first, config))
        renewed, renewing = stage.renewed
        fitted, ending = metered(partial(pipeline.as_of_the_end, stage.first, learnt, renewed, config))
        return Ours(
            recommender=Recommender.of(fitted, config),
            fit=_sum(stage.learning, second, renewing, ending),
            reads_interest=learnt.second.interest is not None,
        )


def _stage_one(
    interactions: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame | None, config: RecommenderConfig
) -> _StageOne:
    tables = validate(interactions, items, users, unknown_items=config.unknown_items, now=datetime.now(UTC))
    device = resolve_device(config.device)
    first, learning = metered(partial(pipeline.learn_first_stage, tables, config, device))
    return _StageOne((interactions, items), config, first, learning)


def _sum(*parts: Usage) -> Usage:
    return Usage(seconds=sum(part.seconds for part in parts), peak_mb=max(part.peak_mb for part in parts))
