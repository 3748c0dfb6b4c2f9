"""Speed, recall and memory of every kind of index over clustered unit vectors.

    python benchmarks/speed/search.py --n 1000000 --dim 384
    python benchmarks/speed/search.py --model FOLDER --search-dims 32,64,128

The second searches the vectors of a saved recommender in fewer dimensions, for its users. Both print a markdown table;
the first writes its numbers with ``--out``. On a CUDA machine add ``--device cuda``. Without FAISS the torch rows
remain. All times are wall times of this process: run it on an idle machine, or read the ratios only.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from indexing.exact import ExactIndex
from indexing.faiss_master import faiss_build, require_faiss
from indexing.index import FloatArray, IndexConfig, Kind, RowArray, VectorIndex, build_index, index_summary
from indexing.shortening import Shortening
from indexing.tuning import recall_of
from recsys import Recommender
from recsys.towers import histories_of, likely_queries

K, BATCH, N_SINGLE, N_QUERIES, CHUNK = 100, 256, 200, 512, 100_000
FAISS_DEFAULT = 128_000  # distance_compute_blas_threshold of FAISS 1.15
COLUMNS = ("kind", "summary", "build_s", "bytes_per_item", "recall", "p50_ms", "p99_ms", "batch_qps")
RATIO = "batch, times FAISS's default"
SORTS = (slice(None, None, 2), slice(1, None, 2))  # of likely queries: users, and vectors like items


def clustered(n: int, dim: int, seed: int, *, clusters: int = 2000, latent: int = 48) -> FloatArray:
    """Unit vectors float32 (n, dim) in clusters of Zipf sizes, of ``latent`` dimensions and a little noise."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, clusters + 1)
    centres = rng.normal(size=(clusters, latent)).astype(np.float32)
    directions = np.linalg.qr(rng.normal(size=(dim, min(latent, dim))))[0].T.astype(np.float32)
    vectors = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, CHUNK):
        size = min(CHUNK, n - start)
        inside = 0.6 * rng.standard_normal(size=(size, latent), dtype=np.float32)
        inside += centres[rng.choice(clusters, size=size, p=shares / shares.sum())]
        block = inside[:, : len(directions)] @ directions + 0.05 * rng.standard_normal((size, dim), dtype=np.float32)
        vectors[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def seconds(action: Callable[[], object], *, repeats: int = 3) -> float:
    """Median wall time after one run that does not count."""
    action()
    return float(np.median([_timed(action) for _ in range(repeats)]))


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(kind: Kind, vectors: FloatArray, queries: FloatArray, truth: RowArray, device: str) -> dict[str, Any]:
    """Build one kind and time it."""
    start = time.perf_counter()
    index = build_index(vectors, IndexConfig(kind=kind), device=device)
    build_s = time.perf_counter() - start
    found, _ = index.search(queries, K)
    single, batch = speeds(index, queries)
    row = {
        "kind": kind,
        "summary": index_summary(index),
        "build_s": build_s,
        "bytes_per_item": index.bytes_per_item,
        "recall": float(recall_of(found, truth).mean()),
        "p50_ms": 1e3 * float(np.median(single)),
        "p99_ms": 1e3 * float(np.percentile(single, 99)),
        "batch_qps": batch,
    }
    if index.engine == "faiss" and index.device == "cpu":
        row[RATIO] = batch / batch_with_default_threshold(index, queries)
    return row


def speeds(index: VectorIndex, queries: FloatArray) -> tuple[list[float], float]:
    """Seconds of single queries, and queries a second in batches."""
    rows = np.arange(N_SINGLE) % len(queries)
    single = [_timed(lambda row=row: index.search(queries[row : row + 1], K)) for row in rows]
    return single, BATCH / seconds(lambda: index.search(queries[:BATCH], K))


def batch_with_default_threshold(index: VectorIndex, queries: FloatArray) -> float:
    """Queries per second of batches of 64 where FAISS decides by itself when to use BLAS."""
    faiss = require_faiss()
    ours = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = FAISS_DEFAULT if ours > 20 else ours
    try:
        return 64 / seconds(lambda: index.search(queries[:64], K), repeats=1)
    finally:
        faiss.cvar.distance_compute_blas_threshold = ours


def peaks(device: str) -> dict[str, float]:
    """What the device does at best: bytes per second of a copy (read and written), FLOP per second of a matmul."""
    source = torch.ones(2**28 if device.startswith("cuda") else 2**26, device=device)
    target = torch.empty_like(source)
    square = torch.ones((8192 if device.startswith("cuda") else 2048,) * 2, device=device)
    copy_s = seconds(lambda: _finished(target.copy_(source)), repeats=5)
    product_s = seconds(lambda: _finished(square @ square), repeats=5)
    return {"bytes_per_s": 2 * 4 * source.numel() / copy_s, "flop_per_s": 2 * len(square) ** 3 / product_s}


def _finished(result: torch.Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def share_of_peak(row: dict[str, Any], n: int, dim: int, peak: dict[str, float]) -> str:
    """What one query reads, and what a batch computes, against the best that the device does."""
    read = 4 * n * dim / (row["p50_ms"] / 1e3) / peak["bytes_per_s"]
    computed = 2 * n * dim * row["batch_qps"] / peak["flop_per_s"]
    return (
        f"exact on torch: one query reads {read:.0%} of the {peak['bytes_per_s'] / 1e9:,.0f} GB/s of a copy, "
        f"a batch computes {computed:.0%} of the {peak['flop_per_s'] / 1e9:,.0f} GFLOP/s of a float32 matmul"
    )


def short_searches(folder: str, dims: list[int], seed: int) -> None:
    """Fewer dimensions over a recommender's item vectors: what three ways of making them find, what a flat index costs.

    The projections are fitted to half of the users and asked by the others; vectors like items are drawn twice.
    """
    state = Recommender.load(folder)._state
    vectors, encoder = state.towers.item_vectors, state.towers.history_encoder
    histories = histories_of(state.events.with_columns(weight=1.0))
    mixed = np.random.default_rng(seed).permutation(len(histories))
    halves = (histories.take(mixed[: len(mixed) // 2]), histories.take(mixed[len(mixed) // 2 :]))
    learnt, asked = (likely_queries(half, encoder, vectors, seed=seed + place) for place, half in enumerate(halves))
    truth, _ = ExactIndex(vectors, device="cpu", copy=False).search(asked, K)
    among = (K, 2 * K, 5 * K)
    print(f"{len(vectors):,} x {vectors.shape[1]}, {len(halves[1]):,} users; share of the best {K} among {among}\n")
    print("| dimensions | made by | users | like items |\n| --- | --- | --- | --- |")
    for dim in dims:
        for name, (queries, rows) in ways_to_shorten(learnt, asked, vectors, dim).items():
            found = best_rows(queries, rows, among[-1])
            shares = [[recall_of(found[part, :k], truth[part]).mean() for k in among] for part in SORTS]
            users, others = (", ".join(f"{share:.3f}" for share in sort) for sort in shares)
            print(f"| {dim} | {name} | {users} | {others} |", flush=True)
    print("\n| dimensions | recall, users | recall, like items | rescored | p50_ms | batch_qps | bytes_per_item |")
    print("|" + " --- |" * 7)
    for dim in [*dims, vectors.shape[1]]:
        index = build_index(vectors, IndexConfig(kind="flat", search_dim=dim), device="cpu", queries=lambda: learnt)
        recall, (single, batch) = recall_of(index.search(asked, K)[0], truth), speeds(index, asked)
        means = [float(recall[part].mean()) for part in SORTS]
        cells = [dim, *means, getattr(index, "overfetch", 1), 1e3 * float(np.median(single)), batch]
        print(f"| {' | '.join(map(_cell, [*cells, index.bytes_per_item]))} |", flush=True)


def best_rows(queries: FloatArray, vectors: FloatArray, k: int) -> RowArray:
    """Rows of the largest inner products, best first, (q, k)."""
    blocks = (torch.from_numpy(queries[start : start + BATCH] @ vectors.T) for start in range(0, len(queries), BATCH))
    return np.concatenate([block.topk(k).indices.numpy() for block in blocks])


def ways_to_shorten(
    learnt: FloatArray, asked: FloatArray, vectors: FloatArray, dim: int
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Short queries and short vectors: a prefix, the items' principal components, and as `search_dim` makes them."""
    prefix = vectors[:, :dim] / np.maximum(np.linalg.norm(vectors[:, :dim], axis=1, keepdims=True), 1e-9)
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    main = directions[:, ::-1][:, :dim]
    fitted = Shortening.learn(learnt, vectors, dim)
    return {
        "prefix, brought to unit length": (asked[:, :dim], prefix),
        "principal components of the items": (asked @ main, vectors @ main),
        "fitted to both": (fitted.of_queries(asked), fitted.of_vectors(vectors)),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = [*COLUMNS[:1], *COLUMNS[2:], RATIO, "summary"]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if value != str(value)
        else str(value)
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--kinds", default=",".join(get_args(Kind)[1:]), help="separated by commas")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--model", help="folder of a saved recommender, whose vectors are searched in fewer dimensions")
    parser.add_argument("--search-dims", default="32,64,128", help="how many, separated by commas; with --model")
    arguments = parser.parse_args()
    if arguments.model:
        short_searches(arguments.model, [int(dim) for dim in arguments.search_dims.split(",")], arguments.seed)
        return
    report(arguments.n, arguments.dim, arguments.kinds.split(","), arguments.device, arguments.seed, arguments.out)


def report(n: int, dim: int, kinds: list[Any], device: str, seed: int, out: Path | None) -> None:
    """Measure the kinds over n vectors; queries are further vectors of the same clusters."""
    vectors = clustered(n + N_QUERIES, dim, seed)
    vectors, queries = vectors[:n], vectors[n:].copy()
    peak = peaks(device)
    truth, _ = ExactIndex(vectors, device=device, copy=False).search(queries, K)
    rows = []
    for kind in kinds if faiss_build() else ["exact"]:
        rows.append(measure(kind, vectors, queries, truth, device))
        print(rows[-1]["summary"], flush=True)
    print(f"\n{n:,} x {dim}, k={K}, batches of {BATCH}, {torch.get_num_threads()} threads, {device}\n")
    print(markdown(rows))
    exact = [share_of_peak(row, n, dim, peak) for row in rows if row["kind"] == "exact"]
    print(f"\n{''.join(exact)}")
    if out is not None:
        facts = {"n": n, "dim": dim, "device": device, "machine": platform.processor(), "peak": peak, "rows": rows}
        out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
