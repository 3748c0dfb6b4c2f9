"""The item tower: what a text says plus what behaviour adds, as one unit vector.

Owns the projection of text vectors, the word vectors and the gated id residual, and their sensible start. Text vectors
come from `indexing/encoder.py`; training is `indexing/tower_lesson.py`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

WORD_START = 0.7  # length of a word vector before training; a text vector has length 1
TEXTS_PER_BLOCK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTowerConfig:
    """Shape of the item tower.

    Attributes:
        dim: length of an item vector, even: before training the first half holds text, the second behaviour.
        min_interactions: an item with fewer has no id residual, as if it were new.
        id_dropout: share of the items whose residual is left out of a training step.
        word_dropout: share of the words left out of a training step.
        max_words: most words with a vector of their own; 0 leaves word vectors out.
    """

    dim: int = 256
    min_interactions: int = 2
    id_dropout: float = 0.2
    word_dropout: float = 0.2
    max_words: int = 50_000

    def __post_init__(self) -> None:
        if self.dim < 4 or self.dim % 2:
            raise ValueError(f"item_tower: dim={self.dim} must be even and at least 4")
        if self.min_interactions < 1 or self.max_words < 0:
            raise ValueError(f"item_tower: min_interactions must be 1 or more and max_words 0 or more, got {self}")
        if not (0.0 <= self.id_dropout < 1.0 and 0.0 <= self.word_dropout < 1.0):
            raise ValueError(f"item_tower: id_dropout and word_dropout must lie in [0, 1), got {self}")


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """What the tower reads of n items.

    Attributes:
        texts: float32 (n_texts, text_dim), unit vectors of the distinct texts.
        words: float32 CSR (n_texts, n_words).
        text_rows: int64 (n,), the text of each item.
        counts: float32 (n,), interactions of each item; 0 for one that is new.
    """

    texts: npt.NDArray[np.float32]
    words: sp.csr_matrix
    text_rows: npt.NDArray[np.int64]
    counts: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.text_rows)


class ItemTower(nn.Module):
    """vector = unit(projected text + word vectors + gate(count) * id residual).

    The residual of an item with too little behaviour is zero, and residuals are dropped at random in training, so that
    a cold item lies where a warm one with the same text would be sought (Source: Volkovs et al. 2017, DropoutNet).
    """

    def __init__(self, config: ItemTowerConfig, *, text_dim: int, n_words: int, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.text_dim, self.n_words, self.n_items = text_dim, n_words, n_items
        self.center = nn.Parameter(torch.zeros(text_dim), requires_grad=False)
        self.project = nn.Linear(text_dim, config.dim, bias=False)
        self.words = nn.EmbeddingBag(max(n_words, 1), config.dim, mode="sum")
        self.residuals = nn.Embedding(n_items, config.dim)
        self.gate = nn.Parameter(torch.tensor([2.0, 0.0]))  # of the count's logarithm: nearly open at the start
        nn.init.zeros_(self.residuals.weight)
        nn.init.zeros_(self.words.weight)

    @classmethod
    def blank(cls, config: ItemTowerConfig, *, text_dim: int, n_words: int, n_items: int) -> Self:
        """A tower whose weights hold anything until `load_state_dict` sets them: none is drawn."""
        with torch.device("meta"):
            made = cls(config, text_dim=text_dim, n_words=n_words, n_items=n_items)
        return made.to_empty(device="cpu")

    def start(self, features: ItemFeatures, behaviour: sp.csr_matrix, *, seed: int, progress: bool = False) -> None:
        """Set the weights to what is known without training: text in the first half, behaviour in the second.

        Text starts as its principal components, words as random directions (so that their inner products resemble those
        of TF-IDF vectors; Source: Achlioptas 2003), residuals as a truncated SVD of the item-to-item matrix (Source:
        Levy and Goldberg 2014, "Neural word embedding as implicit matrix factorization").

        Args:
            features: of the items.
            behaviour: CSR (n_items, n_items), larger for items that are taken together.
            seed: of the random directions and the SVD's start.
            progress: whether stderr shows how far the SVD is.
        """
        half = self.config.dim // 2
        rng = np.random.default_rng(seed)
        center = features.texts.mean(axis=0)
        directions = _principal(features.texts - center, half)
        signs = rng.standard_normal((self.words.weight.shape[0], half)) * WORD_START / np.sqrt(half)
        with torch.no_grad():
            self.center.copy_(torch.from_numpy(center))
            self.project.weight.zero_()
            self.project.weight[: len(directions)] = torch.from_numpy(directions)
            if self.n_words:
                self.words.weight[:, :half] = torch.from_numpy(signs)
            factors = torch.from_numpy(factors_of(behaviour, half, seed=seed, progress=progress))
            self.residuals.weight.zero_()
            self.residuals.weight[:, half : half + factors.shape[1]] = factors

    @torch.no_grad()
    def forget(self, rare: npt.NDArray[np.bool_]) -> None:
        """Set the residuals of these items, bool (n_items,), to zero: training has not looked at them."""
        self.residuals.weight[torch.from_numpy(rare)] = 0.0

    def has_residual(self) -> npt.NDArray[np.bool_]:
        """Items whose residual was learnt, bool (n_items,)."""
        return np.asarray(self.residuals.weight.detach().any(dim=1).cpu().numpy())

    def forward(self, features: "TowerInput", rows: Tensor, *, residual: bool = True) -> Tensor:
        """Unit vectors of some items, (len(rows), dim).

        Args:
            features: of all items, on this tower's device.
            rows: int64, rows of the items.
            residual: whether ids may add anything; without them every item is as if it were new.
        """
        texts, owners = torch.unique(features.text_rows[rows], return_inverse=True)
        vectors = self._read(features, texts)[owners]
        if residual:
            vectors = vectors + self._gates(features.counts[rows])[:, None] * self.residuals(rows)
        return functional.normalize(vectors.float(), dim=1)

    def _read(self, features: "TowerInput", texts: Tensor) -> Tensor:
        """Projected text plus word vectors of some texts, (len(texts), dim)."""
        vectors: Tensor = self.project(functional.normalize(features.texts[texts] - self.center, dim=1))
        if not self.n_words:
            return vectors
        starts, lengths = features.indptr[texts], features.indptr[texts + 1] - features.indptr[texts]
        offsets = torch.cumsum(lengths, 0) - lengths
        where = torch.arange(int(lengths.sum()), device=texts.device) + torch.repeat_interleave(
            starts - offsets, lengths
        )
        worth = features.worth[where]
        if self.training:
            worth = worth * (torch.rand_like(worth) >= self.config.word_dropout)
        words: Tensor = self.words(features.word_rows[where], offsets, per_sample_weights=worth)
        return vectors + words

    def _gates(self, counts: Tensor) -> Tensor:
        """How much of its residual each item shows, in [0, 1), (n,)."""
        gates = torch.sigmoid(self.gate[0] + self.gate[1] * torch.log1p(counts))
        gates = gates * (counts >= self.config.min_interactions)
        if self.training:
            gates = gates * (torch.rand_like(gates) >= self.config.id_dropout)
        return gates

    @torch.no_grad()
    def encode(self, features: ItemFeatures) -> npt.NDArray[np.float32]:
        """Unit vectors of all items, float32 (n, dim)."""
        self.eval()
        given = TowerInput.of(features, self.project.weight.device)
        blocks = torch.arange(len(features), device=self.project.weight.device).split(TEXTS_PER_BLOCK)  # type: ignore[no-untyped-call]
        vectors = [self(given, rows).cpu().numpy() for rows in blocks]
        return np.concatenate(vectors) if vectors else np.zeros((0, self.config.dim), dtype=np.float32)

    @torch.no_grad()
    def encode_texts(self, texts: npt.NDArray[np.float32], words: sp.csr_matrix) -> npt.NDArray[np.float32]:
        """Unit vectors of texts alone: new items, queries, profiles; float32 (n, dim)."""
        nothing = np.zeros(len(texts), dtype=np.float32)
        self.eval()
        given = TowerInput.of(ItemFeatures(texts, words, np.arange(len(texts)), nothing), self.project.weight.device)
        rows = torch.arange(len(texts), device=self.project.weight.device)
        return np.asarray(self(given, rows, residual=False).cpu().numpy())

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"text_dim": self.text_dim, "n_words": self.n_words, "n_items": self.n_items}
        (folder / "config.json").write_text(json.dumps({**asdict(self.config), **sizes}, indent=2), encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, *, device: str) -> Self:
        """Read what `save` wrote."""
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: shape.pop(name) for name in ("text_dim", "n_words", "n_items")}
        tower = cls.blank(ItemTowerConfig(**shape), **sizes)
        tower.load_state_dict(load_file(folder / "model.safetensors"))
        return tower.to(device).eval()


@dataclass(frozen=True, slots=True)
class TowerInput:
    """`ItemFeatures` as tensors on a device; the words as CSR parts `indptr`, `word_rows`, `worth`."""

    texts: Tensor
    indptr: Tensor
    word_rows: Tensor
    worth: Tensor
    text_rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, features: ItemFeatures, device: torch.device | str) -> "TowerInput":
        """Copy to the device."""
        words = features.words
        parts = (
            features.texts, words.indptr.astype(np.int64), words.indices.astype(np.int64), words.data,
            features.text_rows, features.counts,
        )  # fmt: skip
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in parts))


def _principal(centered: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """At most `k` principal directions, float32 (k', d), signs fixed."""
    values, vectors = np.linalg.eigh(centered.T.astype(np.float64) @ centered)
    chosen = vectors[:, np.argsort(-values)[:k]].T
    return np.asarray(chosen * _signs(chosen), dtype=np.float32)


def factors_of(behaviour: sp.csr_matrix, k: int, *, seed: int, progress: bool = False) -> npt.NDArray[np.float32]:
    """Left factors of a truncated SVD of the symmetric part, float32 (n, k'); rows no longer than 1.

    A row shorter than the median keeps its relative length: what is known about such an item is little.
    """
    n = behaviour.shape[0]
    k = min(k, n - 2)
    if k < 1 or behaviour.nnz == 0:
        return np.zeros((n, 0), dtype=np.float32)
    symmetric = (behaviour + behaviour.T).astype(np.float64)
    with tqdm(desc="factors", unit=" products", disable=not progress, mininterval=1.0) as bar:

        def product(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            bar.update()
            return np.asarray(symmetric @ vectors)

        counted = LinearOperator(
            (n, n), matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=np.float64
        )
        left, values, _ = svds(counted, k=k, v0=np.random.default_rng(seed).standard_normal(n))
    order = np.argsort(-values)
    factors = left[:, order] * np.sqrt(np.maximum(values[order], 0.0))
    factors *= _signs(factors.T).T
    lengths = np.linalg.norm(factors, axis=1, keepdims=True)
    known = lengths > 1e-9
    median = np.median(lengths[known]) if known.any() else 1.0
    # Rounding error differs from run to run, and Adam would make whole steps of it.
    return np.asarray(np.round(factors / np.maximum(lengths, median), 6), dtype=np.float32)


def _signs(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """+1 or -1 for each row, (n, 1), so that its entry of largest size becomes positive."""
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return np.where(largest < 0, -1.0, 1.0)
