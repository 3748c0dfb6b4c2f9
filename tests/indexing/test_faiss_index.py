"""What is FAISS's alone: settings, lists and probes, the file, the GPU."""

import struct
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from indexing import faiss_index
from indexing.exact import ExactIndex
from indexing.faiss_index import FaissIndex, both_builds_installed, effort_at, faiss_build
from indexing.index import FloatArray, Mask, MultiGpu, RowArray, load_index


def clustered(n_clusters: int = 20, size: int = 50, dim: int = 16, seed: int = 0) -> FloatArray:
    """Unit vectors; rows of one cluster stand together."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(n_clusters, dim)), size, axis=0)
    vectors = (centres + 0.1 * rng.normal(size=centres.shape)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_equals_exact(
    rows: RowArray, scores: FloatArray, queries: FloatArray, vectors: FloatArray, allowed: Mask | None = None
) -> None:
    """As good as the exact answer; two libraries may order rows whose scores differ in their last bits alone."""
    _, exact_scores = ExactIndex(vectors, device="cpu").search(queries, rows.shape[1], allowed=allowed)
    np.testing.assert_allclose(scores, exact_scores, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(queries @ vectors.T, rows, axis=1), scores, atol=1e-5)
    assert rows.min() >= 0
    assert allowed is None or allowed[rows].all()
    assert all(len(set(found)) == len(found) for found in rows.tolist())


@pytest.fixture(scope="module")
def vectors() -> FloatArray:
    return clustered()


@pytest.fixture(scope="module")
def ivf(vectors: FloatArray) -> FaissIndex:
    return FaissIndex.ivf(vectors, n_lists=20, n_probe=1, device="cpu")


def test_batches_reach_blas() -> None:
    assert faiss_build() in ("cpu", "gpu")
    assert faiss.cvar.distance_compute_blas_threshold <= 800 * faiss.omp_get_max_threads()


class TestProbes:
    """One list of twenty is probed, unless that cannot answer."""

    def test_one_probe_finds_the_own_cluster(self, ivf: FaissIndex, vectors: FloatArray) -> None:
        rows, _ = ivf.search(vectors[::50], 5)
        assert (rows // 50 == np.arange(20)[:, None]).mean() > 0.9

    def test_missing_rows_are_searched_in_all_lists(self, ivf: FaissIndex, vectors: FloatArray) -> None:
        rows, scores = ivf.search(vectors[:10], 700)
        assert_equals_exact(rows, scores, vectors[:10], vectors)

    def test_a_narrow_mask_is_searched_in_all_lists(self, ivf: FaissIndex, vectors: FloatArray) -> None:
        allowed = np.arange(len(vectors)) % 25 == 0
        rows, scores = ivf.search(vectors[:10], 20, allowed=allowed)
        assert_equals_exact(rows, scores, vectors[:10], vectors, allowed)

    def test_more_probes_than_lists_are_all_lists(self, vectors: FloatArray) -> None:
        index = FaissIndex.ivf(vectors, n_lists=4, n_probe=1_000, device="cpu")
        exact_rows, _ = ExactIndex(vectors, device="cpu").search(vectors[:10], 5)
        np.testing.assert_array_equal(index.search(vectors[:10], 5)[0], exact_rows)

    def test_short_lists_are_followed_by_more(self) -> None:
        """A cluster of 3 rows and one of 997, in a list each: three rows are not five."""
        vectors = np.concatenate([clustered(1, 3, seed=1), clustered(1, 997, seed=2)])
        index = FaissIndex.ivf(vectors, n_lists=2, n_probe=1, device="cpu")
        rows, _ = index.search(vectors[:1], 5)
        assert set(rows[0, :3]) == {0, 1, 2}
        assert (rows[0, 3:] >= 3).all()

    def test_efforts_survive_the_file(self, ivf: FaissIndex, vectors: FloatArray, tmp_path: Path) -> None:
        ivf.save(tmp_path)
        loaded = load_index(tmp_path, device="cpu")
        for found, expected in zip(loaded.search(vectors, 5), ivf.search(vectors, 5), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_same_vectors_same_lists(self, ivf: FaissIndex, vectors: FloatArray, tmp_path: Path) -> None:
        ivf.save(tmp_path / "a")
        FaissIndex.ivf(vectors, n_lists=20, n_probe=1, device="cpu").save(tmp_path / "b")
        assert (tmp_path / "a/index.faiss").read_bytes() == (tmp_path / "b/index.faiss").read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_wide_mask_on_flat_equals_exact(vectors: FloatArray, share: float) -> None:
    """Half of the queries find their own cluster allowed, the other half find it forbidden."""
    allowed = np.arange(len(vectors)) < share * len(vectors)
    rows, scores = FaissIndex.flat(vectors, device="cpu").search(vectors[::7], 40, allowed=allowed)
    assert_equals_exact(rows, scores, vectors[::7], vectors, allowed)


def test_deep_ties_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "HITS_AT_ONCE", 100)
    vectors = np.tile(np.eye(2, dtype=np.float32), (200, 1))
    rows, _ = FaissIndex.flat(vectors, device="cpu").search(vectors[:30], 6)
    np.testing.assert_array_equal(rows, np.arange(0, 12, 2) + np.arange(30)[:, None] % 2)


class TestFile:
    """A file that is not what the header says is refused, and the reader's limits are put back."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        FaissIndex.flat(np.eye(8, dtype=np.float32), device="cpu").save(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"not an index at all"),
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes().replace(struct.pack("<q", 64), struct.pack("<q", 1 << 30))),
        ],
        ids=["missing", "empty", "garbage", "truncated", "huge length"],
    )
    def test_refuses_spoilt_file(self, folder: Path, spoil: Callable[[Path], object]) -> None:
        before = (folder / "index.faiss").read_bytes()
        spoil(folder / "index.faiss")
        assert not (folder / "index.faiss").exists() or (folder / "index.faiss").read_bytes() != before
        with pytest.raises(ValueError, match=r"index\.faiss cannot be read .*; build the index again"):
            load_index(folder, device="cpu")

    def test_refuses_another_index_type(self, folder: Path) -> None:
        faiss.write_index(faiss.IndexFlatL2(8), str(folder / "index.faiss"))
        with pytest.raises(ValueError, match="holds a IndexFlatL2, which is no index of ours"):
            load_index(folder, device="cpu")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"size": 8', '"size": 9', "the index holds 8 x 8, its header says 9 x 8"),
            ('"dim": 8', '"dim": 7', "the index holds 8 x 8, its header says 8 x 7"),
            ('"flat"', '"ivf"', "the file is flat, its header says ivf"),
            ('"efforts"', '"effort"', "efforts must be pairs of a depth and an effort, by ascending depth, got None"),
            ('"efforts": [', '"efforts": [[9, 2],', "efforts must be pairs"),
            ('"efforts": [', '"efforts": [[0, 2],', "efforts must be pairs"),
            ('"efforts": [', '"efforts": [7,', "efforts must be pairs"),
        ],
    )
    def test_refuses_contradiction(self, folder: Path, old: str, new: str, message: str) -> None:
        header = folder / "index.json"
        header.write_text(header.read_text().replace(old, new))
        with pytest.raises(ValueError, match=message):
            load_index(folder, device="cpu")

    @pytest.mark.skipif(not hasattr(faiss, "set_deserialization_loop_limit"), reason="FAISS without limits")
    def test_limits_are_put_back(self, folder: Path) -> None:
        def limits() -> tuple[int, int]:
            return (
                faiss.get_deserialization_loop_limit(),
                faiss.get_deserialization_vector_byte_limit(),
            )

        before = limits()
        load_index(folder, device="cpu")
        (folder / "index.faiss").write_bytes(b"")
        with pytest.raises(ValueError, match="cannot be read"):
            load_index(folder, device="cpu")
        assert limits() == before


class TestBuilds:
    """Two builds of FAISS overwrite each other; the check reads the installed distributions."""

    def install(self, site: Path, name: str) -> None:
        info = site / f"{name.replace('-', '_')}-1.15.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")

    @pytest.mark.parametrize(
        ("names", "both"),
        [
            ([], False),
            (["faiss-cpu"], False),
            (["faiss-gpu"], False),
            (["faiss-cpu", "faiss-gpu"], True),
            (["faiss_cpu", "FAISS-GPU-cu12"], True),
        ],
    )
    def test_both(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], both: bool) -> None:
        for name in names:
            self.install(tmp_path, name)
        monkeypatch.setattr("sys.path", [str(tmp_path)])
        assert both_builds_installed() is both


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or faiss_build() != "gpu", reason="no CUDA device or no GPU build of FAISS"
)
class TestGpu:
    """What the GPU cannot do goes to the CPU master, with the same answers."""

    @pytest.mark.parametrize("kind", ["flat", "ivf"])
    @pytest.mark.parametrize("multi_gpu", ["none", "shard", "replicate"])
    @pytest.mark.parametrize("k", [1, 100, 2047, 2048, 2500])
    def test_equals_exact(self, kind: str, multi_gpu: MultiGpu, k: int) -> None:
        vectors = clustered(size=150)
        queries = clustered(size=2, seed=1)
        index = (
            FaissIndex.flat(vectors, device="cuda", multi_gpu=multi_gpu)
            if kind == "flat"
            else FaissIndex.ivf(vectors, n_lists=20, n_probe=20, device="cuda:0", multi_gpu=multi_gpu)
        )
        assert index.device.startswith("cuda")
        rows, scores = index.search(queries, k)
        assert_equals_exact(rows, scores, queries, vectors)

    @pytest.mark.parametrize("codes", ["flat", "sq8"])
    def test_probes_as_many_lists_as_the_cpu(self, codes: str) -> None:
        vectors = clustered(size=150)
        on_gpu, on_cpu = (
            FaissIndex.ivf(vectors, n_lists=20, n_probe=1, device=device, codes=codes) for device in ("cuda", "cpu")
        )
        for index in (on_gpu, on_cpu):
            index.efforts = ((10, 2), (100, 8))
        for k in (10, 100, 10):
            found, expected = on_gpu.search(vectors[::50], k)[0], on_cpu.search(vectors[::50], k)[0]
            assert (found == expected).mean() > 0.99


def test_efforts_between_and_beyond_the_measured_depths() -> None:
    efforts = ((100, 4), (1000, 40))
    assert [round(effort_at(efforts, depth)) for depth in (1, 100, 500, 1000, 2000)] == [4, 4, 20, 40, 80]
    assert [round(effort_at(((100, 7),), depth)) for depth in (1, 100, 10_000)] == [7, 7, 7]
    assert round(effort_at(((100, 9), (1000, 3)), 10_000)) == 3


@pytest.mark.skipif(faiss_build() == "gpu" and torch.cuda.is_available(), reason="the GPU is used here")
def test_cuda_without_a_gpu_build_serves_from_the_cpu(vectors: FloatArray) -> None:
    index = FaissIndex.flat(vectors, device="cuda")
    assert index.device == "cpu"
    assert index.search(vectors[:1], 1)[0].tolist() == [[0]]
