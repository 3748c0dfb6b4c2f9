"""One contract for every approximate kind: right scores, enough recall, as many rows as there are."""

from pathlib import Path

import numpy as np
import pytest

from indexing.index import FloatArray, IndexConfig, Mask, VectorIndex, build_index, index_summary, load_index
from indexing.tuning import recall_of

N, DIM, TARGET = 12_000, 32, 0.95

CONFIGS = {
    "hnsw": IndexConfig(kind="hnsw"),
    "ivf": IndexConfig(kind="ivf"),
    "ivf-sq8": IndexConfig(kind="ivf-sq8"),
    "ivf-pq": IndexConfig(kind="ivf-pq"),
    "flat, short": IndexConfig(kind="flat", search_dim=24),
    "exact, short": IndexConfig(kind="exact", search_dim=24),
    "ivf-sq8, short": IndexConfig(kind="ivf-sq8", search_dim=24),
}


def catalogue(n: int, seed: int) -> FloatArray:
    """Unit vectors in 200 clusters whose sizes differ; the first dimensions hold the most."""
    centres = np.random.default_rng(0).normal(size=(200, DIM))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(200, size=n, p=np.arange(200, 0, -1) / 20_100)
    vectors = (centres[chosen] + 0.7 * rng.normal(size=(n, DIM))) * np.linspace(1.5, 0.3, DIM)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


VECTORS, QUERIES = catalogue(N, 1), catalogue(100, 2)


@pytest.fixture(scope="module")
def indexes() -> dict[str, VectorIndex]:
    return {}


@pytest.fixture(params=CONFIGS)
def index(request: pytest.FixtureRequest, indexes: dict[str, VectorIndex]) -> VectorIndex:
    if request.param not in indexes:
        indexes[request.param] = build_index(VECTORS, CONFIGS[request.param], device="cpu")
    return indexes[request.param]


def recall(index: VectorIndex, k: int, vectors: FloatArray = VECTORS, allowed: Mask | None = None) -> float:
    """Checks what must hold for every answer, and returns its recall."""
    rows, scores = index.search(QUERIES, k, allowed=allowed)
    allowed = np.ones(len(vectors), dtype=bool) if allowed is None else allowed
    wanted = min(k, int(allowed.sum()))
    assert (rows[:, :wanted] >= 0).all()
    assert (rows[:, wanted:] == -1).all()
    assert np.isneginf(scores[:, wanted:]).all()
    assert allowed[rows[:, :wanted]].all()
    assert all(len(set(row)) == wanted for row in rows[:, :wanted])
    true_scores = QUERIES.astype(np.float64) @ vectors.T.astype(np.float64)
    given = np.take_along_axis(true_scores, rows[:, :wanted], axis=1)
    np.testing.assert_allclose(scores[:, :wanted], given, atol=1e-5, rtol=0)
    assert (np.diff(scores[:, :wanted], axis=1) <= 0).all()
    true_scores[:, ~allowed] = -np.inf
    return float(recall_of(rows, np.argsort(-true_scores, axis=1)[:, :wanted]).mean())


class TestContract:
    @pytest.mark.parametrize("k", [1, 10, 100, 300, 1000, 2500])
    def test_recall_at_every_depth(self, index: VectorIndex, k: int) -> None:
        assert recall(index, k) >= TARGET

    @pytest.mark.parametrize("n_allowed", [11_000, 5_000, 400, 30, 1, 0])
    def test_mask(self, index: VectorIndex, n_allowed: int) -> None:
        allowed = np.zeros(N, dtype=bool)
        allowed[np.random.default_rng(3).permutation(N)[:n_allowed]] = True
        assert recall(index, 100, allowed=allowed) >= (TARGET if n_allowed else 0)

    def test_mask_of_whole_clusters(self, index: VectorIndex) -> None:
        """Most queries find nothing allowed nearby."""
        assert recall(index, 50, allowed=VECTORS[:, 0] > 0.45) > 0.9

    def test_all_rows(self, index: VectorIndex) -> None:
        assert recall(index, N) == 1.0

    def test_measured_recall_is_that_of_the_sample(self, index: VectorIndex) -> None:
        assert index.recall is not None
        assert TARGET <= index.recall <= 1.0

    def test_save_and_load_give_the_same_answers(self, index: VectorIndex, tmp_path: Path) -> None:
        index.save(tmp_path)
        loaded = load_index(tmp_path, device="cpu")
        assert index_summary(loaded) == index_summary(index)
        for found, expected in zip(loaded.search(QUERIES, 40), index.search(QUERIES, 40), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["hnsw", "ivf", "ivf-pq"])
def test_same_vectors_and_seed_same_index(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        build_index(VECTORS, CONFIGS[name], device="cpu").save(tmp_path / folder)
    for path in filter(Path.is_file, (tmp_path / "a").rglob("*")):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["hnsw", "ivf", "ivf-sq8", "ivf-pq", "flat, short"])
def test_added_and_deleted(name: str, tmp_path: Path) -> None:
    vectors, alive = np.concatenate([VECTORS, catalogue(1_000, 4)]), np.random.default_rng(5).random(N + 1_000) < 0.8
    index = build_index(VECTORS, CONFIGS[name], device="cpu")
    index.add(vectors[N:])
    assert recall(index, 100, vectors) >= TARGET
    index.delete(np.flatnonzero(~alive))
    index.save(tmp_path)
    for one in (index, load_index(tmp_path, device="cpu")):
        assert (one.search(vectors[N:][alive[N:]], 1)[0][:, 0] == N + np.flatnonzero(alive[N:])).mean() > 0.99
        rows, _ = one.search(QUERIES, 100)
        assert alive[rows].all()
        assert recall(one, 100, vectors, allowed=alive) >= TARGET


def test_vectors_that_cannot_be_written_are_read() -> None:
    vectors = VECTORS.copy()
    vectors.flags.writeable = False
    index = build_index(vectors, IndexConfig(kind="ivf-sq8", n_probe=30), device="cpu")
    assert index.search(vectors[:3], 1)[0].tolist() == [[0], [1], [2]]
