"""What is built and summed up for a configuration, which vectors are refused, and what a header must hold."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex
from indexing.index import FloatArray, IndexConfig, Mask, build_index, index_summary, load_index


def unit_vectors(n: int, dim: int = 16, seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestHeader:
    """The header is checked before anything else is read."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "cannot be read as the header of an index"),
            ("{", "cannot be read as the header of an index"),
            ("[]", "must hold an object with kind, size and dim"),
            ('{"kind": "flat", "size": 1}', "must hold an object with kind, size and dim"),
            ('{"kind": "tree", "size": 1, "dim": 1}', "unknown index kind 'tree'; known are 'exact', 'flat', "),
            ('{"kind": "auto", "size": 1, "dim": 1}', "unknown index kind 'auto'"),
            ('{"kind": "flat", "size": 1, "dim": 1, "recall": "high"}', "recall must be a number or null, got 'high'"),
        ],
    )
    def test_refuses(self, tmp_path: Path, text: str | None, message: str) -> None:
        if text is not None:
            (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_index(tmp_path, device="cpu")

    def test_content(self, tmp_path: Path) -> None:
        ExactIndex(unit_vectors(20), device="cpu").save(tmp_path)
        header = json.loads((tmp_path / "index.json").read_text())
        assert header == {"kind": "exact", "size": 20, "dim": 16, "recall": None}

    @pytest.mark.parametrize(
        ("deleted", "message"),
        [
            (None, r"deleted\.npy cannot be read"),
            (np.zeros(20, dtype=np.int8), r"must be bool of shape \(20,\) with 1 true"),
            (np.ones(19, dtype=bool), r"must be bool of shape \(20,\) with 1 true"),
            (np.ones(20, dtype=bool), r"must be bool of shape \(20,\) with 1 true"),
        ],
    )
    def test_refuses_deleted(self, tmp_path: Path, deleted: Mask | None, message: str) -> None:
        index = ExactIndex(unit_vectors(20), device="cpu")
        index.delete(np.array([3]))
        index.save(tmp_path)
        (tmp_path / "deleted.npy").unlink() if deleted is None else np.save(tmp_path / "deleted.npy", deleted)
        with pytest.raises(ValueError, match=message):
            load_index(tmp_path, device="cpu")


class TestConfig:
    """Limits of the settings."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kind": "tree"}, "kind must be 'auto', 'exact', 'flat', 'hnsw', .* or 'ivf-pq', got 'tree'"),
            ({"multi_gpu": "all"}, "multi_gpu must be 'none', 'shard' or 'replicate', got 'all'"),
            ({"memory_budget_mb": 0}, "memory_budget_mb must be at least 1, got 0"),
            ({"search_dim": 1}, "search_dim must be at least 2, got 1"),
            ({"ef_search": 0}, "ef_search must be at least 1, got 0"),
            ({"target_recall": 0.0}, r"target_recall is a share, it must lie in \(0, 1\], got 0\.0"),
            ({"target_recall": 1.1}, r"target_recall is a share, it must lie in \(0, 1\], got 1\.1"),
            ({"seed": -1}, "seed must be at least 0, got -1"),
            ({"ivf_from": 0}, "ivf_from must be at least 1, got 0"),
            ({"n_lists": 0}, "n_lists must be at least 1, got 0"),
            ({"n_probe": -3}, "n_probe must be at least 1, got -3"),
        ],
    )
    def test_refuses(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            IndexConfig(**settings)  # type: ignore[arg-type]


class TestBuild:
    """Which kind is built, and which vectors are refused."""

    @pytest.mark.parametrize(
        ("config", "n", "summary"),
        [
            (IndexConfig(), 300, "flat (faiss, cpu), 300 x 16, exact, 64 bytes/item"),
            (IndexConfig(kind="exact"), 1, "exact (torch, cpu), 1 x 16, exact, 64 bytes/item"),
            (IndexConfig(kind="flat", ivf_from=1), 12_000, "flat (faiss, cpu), 12,000 x 16, exact, 64 bytes/item"),
            (IndexConfig(ivf_from=12_000), 11_999, "flat (faiss, cpu), 11,999 x 16, exact, 64 bytes/item"),
            (IndexConfig(kind="ivf"), 9_999, "flat (faiss, cpu), 9,999 x 16, exact, 64 bytes/item"),
            (IndexConfig(kind="ivf", n_lists=5_000), 40, "flat (faiss, cpu), 40 x 16, exact, 64 bytes/item"),
            (IndexConfig(kind="exact", search_dim=16), 9, "exact (torch, cpu), 9 x 16, exact, 64 bytes/item"),
        ],
    )
    def test_kind(self, config: IndexConfig, n: int, summary: str) -> None:
        assert index_summary(build_index(unit_vectors(n), config, device="cpu")) == summary

    @pytest.mark.parametrize(
        ("config", "n", "summary"),
        [
            (
                IndexConfig(ivf_from=12_000, n_probe=90),
                12_000,
                r"ivf \(faiss, cpu\), 12,000 x 16, recall@100 0\.\d{3} at n_probe 90, 74 bytes/item",
            ),
            (
                IndexConfig(kind="ivf", n_probe=7),
                10_000,
                r"ivf .*, 10,000 x 16, recall@100 0\.\d{3} at n_probe 7, 74 bytes/item",
            ),
            (
                IndexConfig(kind="exact", search_dim=12),
                500,
                r"exact .*, 500 x 16, recall@100 [01]\.\d{3} at 12 of 16 dimensions, \d x rescored, 48 bytes/item",
            ),
            (
                IndexConfig(kind="hnsw", ef_search=70),
                10_000,
                r"hnsw .*, recall@100 0\.\d{3} at ef_search 70, 208 bytes",
            ),
        ],
    )
    def test_approximate_kind(self, config: IndexConfig, n: int, summary: str) -> None:
        assert re.match(summary, index_summary(build_index(unit_vectors(n), config, device="cpu")))

    def test_refuses_too_many_dimensions(self) -> None:
        with pytest.raises(ValueError, match="search_dim=17 exceeds the 16 dimensions of the vectors"):
            build_index(unit_vectors(20), IndexConfig(search_dim=17), device="cpu")

    def test_measures_with_the_queries_given(self) -> None:
        vectors, config = unit_vectors(10_000), IndexConfig(kind="ivf", n_probe=20)
        some = (None, lambda: vectors[:50])
        made, given = (build_index(vectors, config, device="cpu", queries=queries) for queries in some)
        assert made.recall != given.recall
        with pytest.raises(ValueError, match="queries to tune on must hold at least one, got none"):
            build_index(vectors, config, device="cpu", queries=lambda: vectors[:0])

    def test_refuses_too_many_lists(self) -> None:
        with pytest.raises(ValueError, match=r"n_lists=300 is too many for 10,000 vectors.* limit is 256"):
            build_index(unit_vectors(10_000), IndexConfig(kind="ivf", n_lists=300), device="cpu")

    @pytest.mark.parametrize(
        ("value", "fault"),
        [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "are zero"), (0.5, "not of unit length")],
    )
    def test_refuses_vectors(self, value: float, fault: str) -> None:
        vectors = unit_vectors(50)
        vectors[[3, 40]] = value
        with pytest.raises(ValueError, match=rf"2 of 50 vectors .*{fault}.*; first rows: \[3, 40\]"):
            build_index(vectors, IndexConfig(), device="cpu")

    def test_accepts_lengths_within_tolerance(self) -> None:
        vectors = unit_vectors(50) * np.float32(1.0009)
        assert build_index(vectors, IndexConfig(), device="cpu").size == 50

    @pytest.mark.parametrize(
        ("vectors", "message"),
        [
            (np.ones((1, 1)), r"vectors must be a float32 matrix, got float64 of shape \(1, 1\)"),
            (np.ones(1, np.float32), r"vectors must be a float32 matrix, got float32 of shape \(1,\)"),
            (np.ones((0, 16), np.float32), r"an index needs at least one vector, got shape \(0, 16\)"),
        ],
    )
    def test_refuses_arrays(self, vectors: FloatArray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_index(vectors, IndexConfig(), device="cpu")


WITHOUT_FAISS = """
import sys
from pathlib import Path
sys.modules["faiss"] = None
import numpy as np
from indexing.faiss_index import faiss_build
from indexing.index import IndexConfig, build_index, index_summary, load_index
assert faiss_build() is None
index = build_index(np.eye(4, dtype=np.float32), IndexConfig(ivf_from=1), device="cpu")
print(index_summary(index), index.search(np.eye(4, dtype=np.float32)[2:3], 2)[0].tolist())
for act in (
    lambda: build_index(np.eye(4, dtype=np.float32), IndexConfig(kind="flat"), device="cpu"),
    lambda: build_index(np.eye(4, dtype=np.float32), IndexConfig(kind="ivf"), device="cpu"),
    lambda: load_index(Path(sys.argv[1]), device="cpu"),
):
    try:
        act()
    except RuntimeError as error:
        print(error)
"""


def test_without_faiss(tmp_path: Path) -> None:
    FaissIndex.flat(unit_vectors(20), device="cpu").save(tmp_path)
    command = [sys.executable, "-c", WITHOUT_FAISS, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
    first, *errors = done.stdout.splitlines()
    assert first == "exact (torch, cpu), 4 x 4, exact, 16 bytes/item [[2, 0]]"
    assert len(errors) == 3
    assert all('pip install "recsys-twostage[cpu]"' in error for error in errors)
