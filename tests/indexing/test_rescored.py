"""What only the two steps could break: short vectors, and files that do not belong together."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexing.exact import ExactIndex
from indexing.index import FloatArray, load_index
from indexing.rescored import RescoredIndex
from indexing.shortening import Shortening


def unit_vectors(n: int, dim: int = 8, seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rescored(vectors: FloatArray, dim: int = 4, overfetch: int = 3) -> RescoredIndex:
    shortening = Shortening.learn(vectors, vectors, dim)
    coarse = ExactIndex(shortening.of_vectors(vectors), device="cpu")
    return RescoredIndex(coarse, vectors, shortening=shortening, overfetch=overfetch)


def test_the_first_step_decides_what_is_found_and_the_second_in_which_order() -> None:
    vectors, queries = unit_vectors(600), unit_vectors(9, seed=1)
    rows, scores = rescored(vectors, overfetch=2).search(queries, 120)
    shortening = Shortening.learn(vectors, vectors, 4)
    near = np.argsort(-((queries @ shortening.queries) @ (vectors @ shortening.vectors).T), axis=1)[:, :240]
    exact = queries @ vectors.T
    for query in range(9):
        best = sorted(near[query], key=lambda row: -exact[query, row])[:120]
        assert rows[query].tolist() == best
        np.testing.assert_allclose(scores[query], exact[query, best], atol=1e-6)


class TestFile:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: (folder / "vectors.npy").unlink(), r"vectors\.npy cannot be read"),
            (lambda folder: np.save(folder / "vectors.npy", np.eye(8)), "must be a float32 matrix, got float64"),
            (lambda folder: np.save(folder / "vectors.npy", unit_vectors(9)), "its header says 20 x 8"),
            (lambda folder: rescored(unit_vectors(9)).coarse.save(folder / "coarse"), "coarse/ does not belong to"),
            (lambda folder: rescored(unit_vectors(20)).save(folder / "coarse"), "coarse/ does not belong to"),
            (lambda folder: (folder / "shortening.npy").unlink(), r"shortening\.npy cannot be read"),
            (lambda folder: np.save(folder / "shortening.npy", np.eye(8, dtype=np.float32)), r"shape \(2, 8, 3\)"),
            (lambda folder: edit(folder, overfetch=0), "coarse/ does not belong to"),
            (lambda folder: edit(folder, overfetch="2"), "coarse/ does not belong to"),
            (lambda folder: edit(folder, kind="flat"), "coarse/ does not belong to"),
        ],
    )
    def test_refuses(self, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
        rescored(unit_vectors(20)).save(tmp_path)
        spoil(tmp_path)
        with pytest.raises(ValueError, match=message):
            load_index(tmp_path, device="cpu")

    def test_vectors_stay_on_disk(self, tmp_path: Path) -> None:
        rescored(unit_vectors(20)).save(tmp_path)
        loaded = load_index(tmp_path, device="cpu")
        assert isinstance(loaded, RescoredIndex)
        assert isinstance(loaded._vectors, np.memmap)


def edit(folder: Path, **changes: object) -> None:
    header = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(header | changes))
