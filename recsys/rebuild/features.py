"""Whether the models of stage 2 find what they were trained on: asked by name, before anything is scored.

Owns the comparison. What is said about the tables or about the version that lacks a feature is the caller's business.
"""

from __future__ import annotations

from recsys.config import RecommenderConfig
from recsys.errors import BundleCorrupt, InvalidData
from recsys.fitted import Fitted
from recsys.requests import blocked_items, known_people
from recsys.snapshot import candidate_frame

INTEREST = ("interest_score", "interest_rank")


def check_features(fitted: Fitted, config: RecommenderConfig) -> None:
    """Refuse a version whose ranker or probability head reads what its rows do not have.

    Raises:
        BundleCorrupt: which model it is, and the first features that it lacks.
    """
    if lack := lacking(fitted, config):
        raise BundleCorrupt(f"the version's {lack}, which its rows do not have; roll it back, or fit again.")


def check_refreshed(fitted: Fitted, parent: Fitted, config: RecommenderConfig) -> None:
    """Refuse what was made of a parent and of tables where some feature of the models cannot be computed.

    Raises:
        BundleCorrupt: the parent lacks it as well.
        InvalidData: the tables are what leaves it out.
    """
    if lack := lacking(fitted, config):
        check_features(parent, config)
        raise InvalidData(
            table="items and users", rule=f"the {lack}, which cannot be computed from these tables",
            remedy="give the columns as at the fit, with several values in each, or fit again",
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
    """Names of what is computed for a candidate, from one user's row."""
    people = known_people(fitted, fitted.timelines.user_ids.alias("user_id").head(1))
    frame = candidate_frame(
        people, fitted.snapshot, None, fitted.catalogue, config,
        blocked=blocked_items(fitted.catalogue, None, None), hide_seen=False, n_candidates=1,
    )  # fmt: skip
    return {*frame.columns, *(INTEREST if fitted.interest is not None else ())}
