"""Speed of the text encoder against sentence-transformers' own `encode`, and of user vectors.

    python benchmarks/speed/encode.py --texts items.parquet --column title,description
    python benchmarks/speed/encode.py --histories

Both encoders read the same texts to the same length, in turns; sentence-transformers with its default settings (fp32,
batches of 32). Prints a markdown table, and writes the numbers with ``--out``. On a CUDA machine add ``--device cuda``.
Wall times are for an idle machine; elsewhere read the ratios, of which that of the CPU seconds is the steadier one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from indexing.encoder import BiEncoder, EncoderConfig
from indexing.exact import ExactIndex
from indexing.history import Histories, HistoryConfig, HistoryEncoder

K, HISTORY_LENGTH, DIM = 100, 50, 384
Times = tuple[float, float]  # wall and CPU seconds


def timed(action: Callable[[], Any], device: str) -> tuple[Any, Times]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def load_texts(path: Path | None, columns: list[str], n: int, seed: int) -> list[str]:
    """Texts of a Parquet file's columns, joined; without a file, made-up ones of 3 to 60 words."""
    rng = np.random.default_rng(seed)
    if path is None:
        words = ["".join(rng.choice(list("abcdefghilmnoprstuvz"), rng.integers(3, 9))) for _ in range(3000)]
        return [" ".join(rng.choice(words, size)) for size in rng.integers(3, 60, size=n)]
    frame = pl.read_parquet(path, columns=columns).fill_null("")
    texts = frame.select(pl.concat_str(columns, separator=". ")).to_series().unique(maintain_order=True)
    return texts.sample(min(n, len(texts)), seed=seed).to_list()


def same_lists(vectors: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Share of each text's nearest `K` that it keeps, without itself."""
    k = min(K, len(truth) - 1)
    lists = [nearest(each, k) for each in (vectors, truth)]
    return float(np.mean([len(np.intersect1d(ours, theirs)) / k for ours, theirs in zip(*lists, strict=True)]))


def nearest(vectors: NDArray[np.float32], k: int) -> list[NDArray[np.int64]]:
    found, _ = ExactIndex(vectors, device="cpu").search(vectors, k + 1)
    return [row[row != own][:k] for own, row in enumerate(found)]


def peak_flops(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a large matrix product."""
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    timed(lambda: matrix @ matrix, device)
    return 2 * size**3 / min(timed(lambda: matrix @ matrix, device)[1][0] for _ in range(5))


def flops(encoder: BiEncoder, texts: list[str]) -> float:
    """FLOPs of the body over the texts' own tokens: 2 per weight and token, and the attention's two products."""
    lengths = np.array([len(ids) for ids in encoder._token_ids(texts)], dtype=np.float64)
    body = sum(weight.numel() for name, weight in encoder.model.named_parameters() if ".layer." in name)
    settings = encoder.model[0].auto_model.config
    attention = 4 * settings.num_hidden_layers * settings.hidden_size * (lengths**2).sum()
    return float(2 * body * lengths.sum() + attention)


def compare_encoders(texts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    encoder = BiEncoder(EncoderConfig(model=args.model, max_tokens=args.max_tokens), device=args.device)
    encoder.model.max_seq_length = args.max_tokens
    encoder.encode(texts[:64])
    encoder.model.encode(texts[:64], show_progress_bar=False)
    ours: list[Times] = []
    theirs: list[Times] = []
    for _ in range(args.repeats):
        truth, spent = timed(lambda: encoder.model.encode(texts, show_progress_bar=False), args.device)
        theirs.append(spent)
        vectors, spent = timed(lambda: encoder.encode(texts), args.device)
        ours.append(spent)
    ratios = np.array(theirs) / np.array(ours)
    wall = float(np.median([wall for wall, _ in ours]))
    row = {
        "texts": len(texts),
        "precision": encoder.precision,
        "sentence_transformers_texts_per_s": len(texts) / float(np.median([wall for wall, _ in theirs])),
        "texts_per_s": len(texts) / wall,
        "ratio_wall": float(np.median(ratios[:, 0])),
        "ratio_cpu": float(np.median(ratios[:, 1])),
        "recall_at_100": same_lists(vectors, truth),
        "lowest_cosine": float((vectors * truth).sum(axis=1).min()),
    }
    if args.device.startswith("cuda"):
        dtype = torch.bfloat16 if encoder.precision == "bf16" else torch.float32
        row["share_of_peak_flops"] = flops(encoder, texts) / wall / peak_flops(args.device, dtype)
    return row


def time_histories(args: argparse.Namespace) -> dict[str, Any]:
    """User vectors of full histories, with an encoder of default shape."""
    rng = np.random.default_rng(args.seed)
    vectors = rng.normal(size=(10_000, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = rng.integers(0, len(vectors), size=args.n * HISTORY_LENGTH).astype(np.int32)
    histories = Histories(np.arange(args.n + 1, dtype=np.int64) * HISTORY_LENGTH, rows)
    torch.manual_seed(args.seed)
    encoder = HistoryEncoder(HistoryConfig(), item_dim=DIM).to(args.device).eval()
    encoder.encode(histories.slice(0, min(512, args.n)), vectors)
    spent = [timed(lambda: encoder.encode(histories, vectors), args.device)[1] for _ in range(args.repeats)]
    wall, cpu = np.median(np.array(spent), axis=0)
    return {
        "users": args.n,
        "history": HISTORY_LENGTH,
        "dim": DIM,
        "users_per_s": args.n / float(wall),
        "users_per_cpu_s_and_thread": args.n * torch.get_num_threads() / float(cpu),
    }


def print_table(row: dict[str, Any]) -> None:
    print("| " + " | ".join(row) + " |")
    print("| " + " | ".join("---" for _ in row) + " |")
    print("| " + " | ".join(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="Parquet file; made-up texts without it")
    parser.add_argument("--column", default="title", help="columns to read, joined; commas between")
    parser.add_argument("--n", type=int, default=2000, help="texts, or users")
    parser.add_argument("--model", default=EncoderConfig().model)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--histories", action="store_true", help="time user vectors instead")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    if args.histories:
        row = time_histories(args)
    else:
        row = compare_encoders(load_texts(args.texts, args.column.split(","), args.n, args.seed), args)
    print_table(row)
    if args.out is not None:
        machine = {"processor": platform.processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        args.out.write_text(json.dumps({"arguments": vars(args), "machine": machine, **row}, default=str, indent=2))


if __name__ == "__main__":
    main()
