"""What a rebuilt bundle must be before it may serve: measured, compared with a limit, recorded.

Owns the gates and their limits. What happens to a bundle that fails is `job.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import polars as pl

from indexing.exact import ExactIndex
from indexing.index import are_unit
from recsys.config import RecommenderConfig
from recsys.errors import InvalidConfig, PublishRefused
from recsys.fitted import Fitted
from recsys.lists import best_items
from recsys.metrics import hit_matrix, ndcg, paired_bootstrap
from recsys.rebuild.refresh import refresh
from recsys.requests import blocked_items, known_people
from recsys.schema import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesConfig:
    """Limits.

    Attributes:
        min_items: items at least, as a share of the parent's.
        max_items: items at most, as a share of the parent's.
        recall: ANN recall@`recall_k` at least, against an exact search.
        recall_k: depth of that.
        n_queries: item vectors that are searched for.
        margin: by how much NDCG@`k` on the freshest interactions may lie below the parent's, at the lower bound of the
            95 % interval.
        holdout_share: the freshest share of the interactions since the parent that is held out, in (0, 1).
        holdout_users: people who are compared at most.
        min_users: with fewer people in the slice the comparison says nothing and is left out.
        golden_users: people who must get full lists, the same ones in another process.
        k: length of the lists.
        reopen_seconds: how long that other process may take.
        seed: of the samples.
    """

    min_items: float = 0.8
    max_items: float = 2.0
    recall: float = 0.95
    recall_k: int = 100
    n_queries: int = 500
    margin: float = 0.01
    holdout_share: float = 0.5
    holdout_users: int = 500
    min_users: int = 30
    golden_users: int = 50
    k: int = 10
    reopen_seconds: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_items <= self.max_items:
            raise InvalidConfig(f"gates: min_items={self.min_items} must be 0 or more and at most {self.max_items}")
        if not (0.0 <= self.recall <= 1.0 and 0.0 < self.holdout_share < 1.0 and self.margin >= 0.0):
            raise InvalidConfig(f"gates: recall in [0, 1], holdout_share in (0, 1), margin 0 or more, got {self}")
        if min(self.recall_k, self.n_queries, self.holdout_users, self.min_users, self.golden_users, self.k) < 1:
            raise InvalidConfig(f"gates: counts and k must be at least 1, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate: what was measured (None where there was nothing to measure), the limit, and whether it is kept."""

    name: str
    value: float | None
    limit: str
    passed: bool


def judge(
    new: Fitted,
    parent: Fitted,
    lists: pl.DataFrame,
    tables: Tables,
    config: RecommenderConfig,
    gates: GatesConfig,
    device: str,
) -> list[GateResult]:
    """All gates that need no file.

    Args:
        new: what shall be published.
        parent: what is live.
        lists: `golden_lists` of `new`.
        tables: that `new` was made from.
        config: of both.
        gates: the limits.
        device: resolved.
    """
    return [
        item_count(len(new.catalogue), len(parent.catalogue), gates),
        unit_vectors(new),
        index_recall(new, gates),
        freshest(new, parent, tables, config, gates, device),
        golden(new, lists, gates),
    ]


def item_count(now: int, before: int, gates: GatesConfig) -> GateResult:
    """The number of items, relative to the parent's."""
    share = now / max(before, 1)
    limit = f"{gates.min_items} to {gates.max_items}"
    return GateResult(name="items", value=share, limit=limit, passed=gates.min_items <= share <= gates.max_items)


def unit_vectors(new: Fitted) -> GateResult:
    """How many text or item vectors are not finite and of unit length."""
    bad = sum(int((~are_unit(vectors)).sum()) for vectors in (new.towers.text_vectors, new.towers.item_vectors))
    return GateResult(name="vectors", value=float(bad), limit="0", passed=bad == 0)


def index_recall(new: Fitted, gates: GatesConfig) -> GateResult:
    """Share of the true best that the index finds, over a seeded sample of item vectors."""
    vectors, index = new.towers.item_vectors, new.towers.index
    limit = f"at least {gates.recall}"
    if index.size != len(vectors):
        return GateResult(name="recall", value=0.0, limit=limit, passed=False)
    rows = np.random.default_rng(gates.seed).permutation(len(vectors))[: gates.n_queries]
    k = min(gates.recall_k, len(vectors))
    found, _ = index.search(vectors[rows], k)
    _, true_scores = ExactIndex(vectors, device="cpu", copy=False).search(vectors[rows], k)
    # Equal scores may stand in for each other: a row counts where it scores no less than the true k-th.
    scores = np.einsum("qd,qkd->qk", vectors[rows], vectors[np.maximum(found, 0)])
    enough = (scores >= true_scores[:, -1:] - 1e-5) & (found >= 0)
    value = float(enough.mean())
    return GateResult(name="recall", value=value, limit=limit, passed=value >= gates.recall)


def freshest(
    new: Fitted, parent: Fitted, tables: Tables, config: RecommenderConfig, gates: GatesConfig, device: str
) -> GateResult:
    """NDCG@k on the freshest interactions: the new state without them minus the parent, lower bound.

    Held out are the newest of the interactions that the parent does not know; with none there is nothing to compare.
    """
    limit = f"at least {-gates.margin}"
    nothing = GateResult(name="freshest", value=None, limit=limit, passed=True)
    end, start = (datetime.fromtimestamp(moment, UTC) for moment in (new.as_of, parent.as_of))
    fresh = tables.interactions.filter(pl.col("timestamp") >= start, pl.col("timestamp") < end)
    cut = fresh["timestamp"].quantile(1.0 - gates.holdout_share, "lower") if fresh.height else None
    if cut is None:
        return nothing
    held = fresh.filter(pl.col("timestamp") >= cut)
    known = tables.interactions.filter(pl.col("timestamp") < cut)
    people = held.join(parent.events.select("user_id").unique(), on="user_id", how="semi")["user_id"].unique().sort()
    if known.is_empty() or len(people) < gates.min_users:
        return nothing
    people = people.sample(min(len(people), gates.holdout_users), seed=gates.seed).sort()
    past = refresh(parent, tables, config, device=device, as_of=cast(datetime, cut), compared=new).fitted
    truth = held.join(people.to_frame("user_id"), on="user_id", how="semi")
    ours, theirs = (
        ndcg(hit_matrix(lists_of(state, people, config, gates.k), truth, gates.k), gates.k) for state in (past, parent)
    )
    _, low, _ = paired_bootstrap(ours, theirs, seed=gates.seed)
    return GateResult(name="freshest", value=low, limit=limit, passed=low >= -gates.margin)


def golden(new: Fitted, lists: pl.DataFrame, gates: GatesConfig) -> GateResult:
    """Share of the golden users who get as many items as there are for them, finite scores; 0 where there is none."""
    people = golden_users(new, gates)
    shown = pl.DataFrame({"item_row": np.flatnonzero(new.catalogue.available).astype(np.int32)})
    own = new.events.join(people.to_frame("user_id"), on="user_id", how="semi").join(shown, on="item_row", how="semi")
    seen = own.group_by("user_id").agg(seen=pl.col("item_row").n_unique().cast(pl.Int64))
    had = lists.group_by("user_id").agg(had=pl.len(), finite=pl.col("score").is_finite().all())
    table = people.to_frame("user_id").join(seen, on="user_id", how="left").join(had, on="user_id", how="left")
    hidden = pl.col("seen").fill_null(0) if new.hide_seen else pl.lit(0)
    wanted = pl.min_horizontal(pl.lit(gates.k), pl.lit(shown.height, dtype=pl.Int64) - hidden)
    full = (pl.col("had").fill_null(0) >= wanted) & pl.col("finite").fill_null(True)
    value = float(table.select(full.mean()).item() if table.height and shown.height else 0.0)
    return GateResult(name="golden", value=value, limit="1.0", passed=value == 1.0)


def reopened(lists: pl.DataFrame, asked: Future[dict[str, list[Any]]], people: pl.Series) -> GateResult:
    """Share of the golden users to whom the sealed folder, opened in another process, gives the same list.

    Args:
        lists: `golden_lists` of what was sealed.
        asked: what the other process will have said, see `recsys.rebuild.reopen.lists_from`.
        people: the golden users.
    """
    ours, theirs = lists.sort("rank"), asked.result()
    same = [theirs.get(str(user)) == ours.filter(pl.col("user_id") == user)["item_id"].to_list() for user in people]
    value = float(np.mean(same)) if same else 0.0
    return GateResult(name="reopen", value=value, limit="1.0", passed=value == 1.0)


def golden_lists(state: Fitted, config: RecommenderConfig, gates: GatesConfig) -> pl.DataFrame:
    """The lists of the golden users."""
    return lists_of(state, golden_users(state, gates), config, gates.k)


def golden_users(state: Fitted, gates: GatesConfig) -> pl.Series:
    """The people whose lists are looked at, by id."""
    users = state.timelines.user_ids.alias("user_id")
    return users.sample(min(len(users), gates.golden_users), seed=gates.seed).sort()


def lists_of(state: Fitted, users: pl.Series, config: RecommenderConfig, k: int) -> pl.DataFrame:
    """`user_id`, `item_id`, `rank`, `score` of some people."""
    lists = best_items(
        state, known_people(state, users), k, config,
        blocked=blocked_items(state.catalogue, None, None), hide_seen=state.hide_seen, progress=False,
    )  # fmt: skip
    return lists.select(
        users.gather(lists["user_row"]).alias("user_id"),
        state.catalogue.ids_of(lists["item_row"].to_numpy()).alias("item_id"),
        "rank",
        "score",
    )


def refusal(results: Sequence[GateResult], version: str) -> PublishRefused | None:
    """Which gates failed, with value and limit, as an error to raise; None where all passed."""
    failed = [result for result in results if not result.passed]
    if not failed:
        return None
    said = "; ".join(f"gate {one.name}: {one.value} is not {one.limit}" for one in failed)
    return PublishRefused(
        f"version {version} was built and kept but is not live. {said}. "
        "Look at the tables, or set other limits in [gates] with --config."
    )


def to_json(results: Sequence[GateResult]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [asdict(result) for result in results]


def from_json(rows: Sequence[dict[str, Any]]) -> list[GateResult]:
    """What `to_json` made."""
    return [GateResult(**row) for row in rows]
