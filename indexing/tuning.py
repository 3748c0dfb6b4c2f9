"""How hard an approximate index must look: the least effort that reaches a recall, measured against exact search.

Owns the sample of queries, the measurement and the search for the setting. What an effort means, lists to probe or
the width of a walk, is the index's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex
from indexing.index import FloatArray, RowArray
from indexing.rescored import RescoredIndex

DEPTHS = {100: 512, 300: 256, 1000: 128}  # rows wanted, and queries that are measured with
OVERFETCH = (2, 5, 10, 20, 50)
STEP = 2**0.25
LEAST_GAIN = 0.001  # recall that doubling the effort must add to be worth another try
SURENESS = 2.0  # standard errors that the mean recall must lie above the target, so that other queries reach it too


def sample_queries(vectors: FloatArray, *, seed: int, n: int = max(DEPTHS.values())) -> FloatArray:
    """Unit queries, float32 (n, d), in turn of two sorts, of which one is hard for lists and the other for graphs.

    The first is a vector with noise of half its length; the second is tilted towards another vector, as users with
    mixed tastes are.
    """
    rng = np.random.default_rng(seed)
    first, second = vectors[rng.integers(len(vectors), size=(2, n))]
    noise = rng.standard_normal(first.shape, dtype=np.float32) / math.sqrt(first.shape[1])
    queries = first + 0.5 * np.where(np.arange(n)[:, None] % 2 == 0, noise, second)
    return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), dtype=np.float32)


def tune(
    index: FaissIndex | RescoredIndex,
    vectors: FloatArray,
    queries: FloatArray,
    *,
    target: float,
    device: str,
    effort: int | None = None,
) -> None:
    """Set the effort of ``index``, for each of ``DEPTHS``, and the recall it then has at 100.

    Where the target is out of reach, what was tried last is kept: the recall says so.

    Args:
        index: Over ``vectors``.
        vectors: float32 (n, d), unit length.
        queries: float32 (q, d) to measure with, at least one; of every other one and the rest, the half that is found
            worse counts.
        target: Least mean recall.
        device: Where the exact search runs, a torch device string.
        effort: Take this one at every depth and only measure.

    Raises:
        ValueError: A query has another shape than ``index`` searches.
    """
    oracle = ExactIndex(vectors, device=device, copy=False)
    samples = {min(depth, len(vectors)): queries[:n] for depth, n in DEPTHS.items()}
    truths = {depth: oracle.search(sample, depth)[0] for depth, sample in samples.items()}
    before = 0.0
    for overfetch in OVERFETCH if isinstance(index, RescoredIndex) else (1,):
        if isinstance(index, RescoredIndex):
            index.overfetch = overfetch
        index.recall, reached = _tune_efforts(index, queries, truths, target, effort)
        if reached or index.recall - before < LEAST_GAIN:
            return
        before = index.recall


def _tune_efforts(
    index: FaissIndex | RescoredIndex,
    queries: FloatArray,
    truths: dict[int, RowArray],
    target: float,
    fixed: int | None,
) -> tuple[float, bool]:
    """Recall at the first depth, and whether it surely reaches the target."""
    efforts: list[tuple[int, int]] = []
    recalls: list[NDArray[np.float64]] = []
    for depth, truth in truths.items():
        least = efforts[-1][1] if efforts else 1
        tries = _ladder(index, depth, least) if fixed is None else [fixed]
        effort, recall = _least_effort(index, queries[: len(truth)], truth, tries, target)
        efforts.append((depth, effort))
        recalls.append(recall)
    _set_efforts(index, efforts)
    return float(_worse_half(recalls[0]).mean()), _lower_bound(recalls[0]) >= target


def _least_effort(
    index: FaissIndex | RescoredIndex,
    queries: FloatArray,
    truth: RowArray,
    tries: Iterable[int],
    target: float,
) -> tuple[int, NDArray[np.float64]]:
    """The first effort whose recall surely reaches the target, or the one after which more effort adds nothing."""
    means: dict[int, float] = {}
    for effort in tries:
        _set_efforts(index, [(1, effort)])
        found, _ = index.search(queries, truth.shape[1])
        recall = recall_of(found, truth)
        means[effort] = float(_worse_half(recall).mean())
        halved = [mean for tried, mean in means.items() if 2 * tried <= effort]
        idle = bool(halved) and means[effort] - halved[-1] < LEAST_GAIN
        if _lower_bound(recall) >= target or idle:
            break
    return effort, recall


def _set_efforts(index: FaissIndex | RescoredIndex, efforts: list[tuple[int, int]]) -> None:
    if isinstance(index, FaissIndex):
        index.efforts = tuple(efforts)
    elif isinstance(index.coarse, FaissIndex):  # it is asked for more rows than are wanted
        index.coarse.efforts = tuple((depth * index.overfetch, effort) for depth, effort in efforts)


def _ladder(index: FaissIndex | RescoredIndex, depth: int, least: int) -> Iterator[int]:
    """Efforts from the least to the most, each ``STEP`` times the one before."""
    coarse, depth = (index, depth) if isinstance(index, FaissIndex) else (index.coarse, depth * index.overfetch)
    if not isinstance(coarse, FaissIndex):
        yield 1
        return
    most = coarse.most_effort
    effort = float(max(least, coarse.least_effort(depth)))
    while effort < most:
        yield round(effort)
        effort = max(effort * STEP, round(effort) + 1)
    yield most


def recall_of(found: RowArray, truth: RowArray) -> NDArray[np.float64]:
    """Share of each query's true rows that were found, float64 (q,).

    Args:
        found: int64 (q, k); -1 is nothing.
        truth: int64 (q, k), distinct rows; -1 is nothing.
    """
    hits = [len(np.intersect1d(row[row >= 0], true)) for row, true in zip(found, truth, strict=True)]
    return np.asarray(np.array(hits) / np.maximum(1, (truth >= 0).sum(axis=1)))


def _worse_half(recalls: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every other query from the first or from the second: two sorts in turn do not balance."""
    halves = [half for half in (recalls[::2], recalls[1::2]) if len(half)]
    return min(halves, key=lambda half: float(half.mean()))


def _lower_bound(recalls: NDArray[np.float64]) -> float:
    recalls = _worse_half(recalls)
    return float(recalls.mean() - SURENESS * recalls.std() / math.sqrt(len(recalls)))
