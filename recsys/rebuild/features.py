"""Whether the models of stage 2 find what they were trained on: asked by name, before anything is scored.

Owns the comparison, and the first question to a loaded recommender. What is said about the tables or about the version
that lacks a feature is the caller's business.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from recsys.candidates import candidate_columns
from recsys.config import RecommenderConfig
from recsys.errors import BundleCorrupt, InvalidData
from recsys.fitted import Fitted
from recsys.snapshot import gather_people

if TYPE_CHECKING:
    from recsys.recommender import Recommender

INTEREST = ("interest_score", "interest_rank")


def check_features(fitted: Fitted, config: RecommenderConfig) -> None:
    """Refuse a version whose ranker or probability head reads what its rows do not have.

    Raises:
        BundleCorrupt: which model it is, and the first features that it lacks.
    """
    if lack := lacking(fitted, config):
        raise BundleCorrupt(f"the version's {lack}, which its rows do not have; roll it back, or fit again.")


def check_answers(recommender: Recommender, name: str) -> None:
    """Refuse a recommender whose models lack a feature, or that has no finite scores for somebody it knows.

    Args:
        recommender: as loaded.
        name: of its version, for the message.

    Raises:
        BundleCorrupt: what is wrong.
    """
    check_features(recommender._state, recommender.config)
    lists = recommender.recommend(recommender.users.head(2), 1, filter_seen=False)
    if lists.height == 0 or not all(math.isfinite(score) for score in lists["score"]):
        raise BundleCorrupt(f"{name} loads but gives no list; keep what is served.")


def check_refreshed(made: Fitted, parent: Fitted, config: RecommenderConfig) -> None:
    """Refuse tables from which some feature of the models cannot be computed.

    Args:
        made: the parent brought up to date with the tables.
        parent: asked only where something is missing, since its sources are not made otherwise.
        config: of both.

    Raises:
        InvalidData: which model it is, and the first features that it lacks.
        BundleCorrupt: the parent lacks them as well, so it is not the tables' fault.
    """
    if lack := lacking(made, config):
        check_features(parent, config)
        raise InvalidData(
            table="interactions, items or users", rule=f"the {lack}, which cannot be computed from these tables",
            remedy="give the tables as at the fit, with several values in each column, or fit again",
        )  # fmt: skip


def lacking(fitted: Fitted, config: RecommenderConfig) -> str | None:
    """The first model that lacks features, and which; None where none does."""
    read = {
        name: ranker.features
        for name, ranker in (("ranker", fitted.ranker), ("new_ranker", fitted.new_ranker))
        if ranker is not None
    }
    if fitted.probabilities is not None:
        read |= {f"head of {event!r}": head.features for event, head in fitted.probabilities.heads.items()}
    rows = _columns(fitted, config) if read else set()
    for name, features in read.items():
        missing = [feature for feature in features if feature not in rows]
        if missing:
            return f"{name} reads {', '.join(missing[:5])}"
    return None


def _columns(fitted: Fitted, config: RecommenderConfig) -> set[str]:
    """Names of what is computed for a candidate, from the candidates of nobody."""
    events = fitted.events.clear()
    nobody = gather_people(events, events["user_id"], fitted.as_of, fitted.user_numbers)
    columns = candidate_columns(
        nobody, fitted.snapshot, None, fitted.catalogue, config, blocked=~fitted.catalogue.available, hide_seen=True
    )
    return {*columns, *(INTEREST if fitted.interest is not None else ())}
