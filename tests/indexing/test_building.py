"""The choice between kinds and what they cost."""

import faiss
import numpy as np
import pytest

from indexing.building import choose_kind, count_lists
from indexing.faiss_master import make_flat, make_hnsw, make_ivf
from indexing.index import FloatArray, IndexConfig
from indexing.layout import bytes_per_item, n_subvectors


@pytest.fixture(scope="module")
def vectors() -> FloatArray:
    vectors = np.random.default_rng(0).normal(size=(4_000, 64)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestChoice:
    @pytest.mark.parametrize(
        ("n", "device", "build", "kind"),
        [
            (100, "cpu", "cpu", "flat"),
            (199_999, "cpu", "cpu", "flat"),
            (200_000, "cpu", "cpu", "ivf"),
            (200_000, "cpu", "gpu", "ivf"),
            (10**7, "cpu", None, "exact"),
            (100, "cuda", "gpu", "exact"),
            (3_999_999, "cuda:1", "gpu", "exact"),
            (4_000_000, "cuda", "gpu", "ivf"),
            (10**7, "cuda", "cpu", "exact"),
        ],
    )
    def test_auto(self, n: int, device: str, build: str | None, kind: str) -> None:
        assert choose_kind(IndexConfig(), n, 384, device=device, faiss=build) == kind

    @pytest.mark.parametrize(
        ("n", "budget", "device", "kind"),
        [
            (100_000, 147, "cpu", "flat"),
            (100_000, 146, "cpu", "ivf-sq8"),
            (100_000, 30, "cpu", "ivf-pq"),
            (1_000_000, 1500, "cpu", "ivf"),
            (1_000_000, 1400, "cpu", "ivf-sq8"),
            (1_000_000, 150, "cpu", "ivf-pq"),
            (1_000_000, 1400, "cuda", "ivf-sq8"),
            (9_000, 1, "cpu", None),
            (1_000_000, 90, "cpu", None),
        ],
    )
    def test_the_budget_decides(self, n: int, budget: int, device: str, kind: str | None) -> None:
        config = IndexConfig(memory_budget_mb=budget)
        if kind is not None:
            assert choose_kind(config, n, 384, device=device, faiss="cpu") == kind
            return
        with pytest.raises(ValueError, match=rf"memory_budget_mb={budget} is too small for {n:,} x 384: .* needs \d+;"):
            choose_kind(config, n, 384, device=device, faiss="cpu")

    @pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-sq8", "ivf-pq"])
    def test_few_vectors_are_scanned(self, kind: str) -> None:
        config = IndexConfig(kind=kind)  # type: ignore[arg-type]
        assert choose_kind(config, 9_999, 8, device="cpu", faiss="cpu") == "flat"
        assert choose_kind(config, 10_000, 8, device="cpu", faiss="cpu") == kind


@pytest.mark.parametrize(("n", "expected"), [(10_000, 256), (1_000_000, 4000), (40, 1)])
def test_number_of_lists(n: int, expected: int) -> None:
    assert count_lists(None, n) == expected


@pytest.mark.parametrize("dim", [64, 63])
def test_bytes_per_item_is_what_faiss_holds(vectors: FloatArray, dim: int) -> None:
    vectors = np.ascontiguousarray(vectors[:, :dim])
    made = {
        "flat": make_flat(vectors),
        "hnsw": make_hnsw(vectors),
        **{
            f"ivf-{codes}".removesuffix("-flat"): make_ivf(vectors, n_lists=20, codes=codes, seed=0)
            for codes in ("flat", "sq8", "pq")
        },
    }
    for kind, master in made.items():
        held = faiss.serialize_index(master).nbytes / len(vectors)
        assert bytes_per_item(kind, len(vectors), dim, 20) == pytest.approx(held, rel=0.06, abs=2), kind


@pytest.mark.parametrize(("dim", "expected"), [(384, 192), (64, 32), (7, 7)])
def test_subvectors_divide_the_dimensions(dim: int, expected: int) -> None:
    assert n_subvectors(dim) == expected
