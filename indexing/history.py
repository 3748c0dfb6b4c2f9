"""The user tower: sequences of item vectors in, user vectors in the same space out.

Owns the ragged history arrays and the causal transformer over them. Knows neither texts nor how the tower is
trained (`indexing/contrastive.py`) nor who the users are: user `i` is position `i` of the histories given.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Histories:
    """What each user took, oldest first, as one flat array and offsets.

    Attributes:
        offsets: int64 (n_users + 1,), user `i` owns positions `offsets[i]` to `offsets[i + 1]`.
        item_rows: int32 (n_events,), rows of the items table.
    """

    offsets: npt.NDArray[np.int64]
    item_rows: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Events per user, int64 (n_users,)."""
        return np.diff(self.offsets)

    def of(self, user: int) -> npt.NDArray[np.int32]:
        """Item rows of one user, oldest first."""
        return self.item_rows[self.offsets[user] : self.offsets[user + 1]]

    def slice(self, start: int, stop: int) -> "Histories":
        """The users `start` to `stop`, renumbered from 0."""
        offsets = self.offsets[start : stop + 1]
        return Histories(offsets - offsets[0], self.item_rows[offsets[0] : offsets[-1]])

    def keep(self, items: npt.NDArray[np.bool_]) -> "Histories":
        """The same users with only the events of some items, bool (n_items,)."""
        kept = items[self.item_rows]
        owner = np.repeat(np.arange(len(self)), self.lengths)[kept]
        lengths = np.bincount(owner, minlength=len(self))
        return Histories(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), self.item_rows[kept])

    def last(self, n: int) -> npt.NDArray[np.int64]:
        """The newest `n` item rows of each user, oldest first, int64 (n_users, n); unused tail is -1."""
        rows = np.full((len(self), n), -1, dtype=np.int64)
        for user in range(len(self)):
            tail = self.of(user)[-n:]
            rows[user, : len(tail)] = tail
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """Shape of the history encoder.

    Attributes:
        max_length: newest events read per user.
        dim: width inside the transformer.
        n_layers: transformer blocks.
        n_heads: attention heads; must divide `dim`.
        dropout: share dropped in training.
        decay: weight of an event relative to the next newer one in the running mean that the transformer corrects.
    """

    max_length: int = 50
    dim: int = 128
    n_layers: int = 1
    n_heads: int = 2
    dropout: float = 0.2
    decay: float = 0.9

    def __post_init__(self) -> None:
        if min(self.max_length, self.dim, self.n_heads) < 1 or self.n_layers < 0:
            raise ValueError(f"history: max_length, dim and n_heads must be positive, n_layers 0 or more, got {self}")
        if self.dim % self.n_heads:
            raise ValueError(f"history: n_heads={self.n_heads} must divide dim={self.dim}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 < self.decay <= 1.0:
            raise ValueError(f"history: dropout must lie in [0, 1) and decay in (0, 1], got {self}")


class Block(nn.Module):
    """One pre-norm causal transformer block (Source: Vaswani et al. 2017; pre-norm after Xiong et al. 2020)."""

    def __init__(self, config: HistoryConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.dropout
        self.norm_attention = nn.LayerNorm(config.dim)
        self.norm_mlp = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim),
            nn.GELU(),
            nn.Linear(4 * config.dim, config.dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) -> (batch, length, dim); position `t` reads positions up to `t` only."""
        batch, length, dim = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, dim / heads)
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class HistoryEncoder(nn.Module):
    """Causal transformer over item vectors, in the spirit of SASRec (Source: Kang and McAuley 2018).

    A user vector is the decayed mean of the item vectors so far plus a learnt correction that starts at zero: an
    untrained encoder is already a sensible one, and one click moves the vector at once.
    """

    def __init__(self, config: HistoryConfig, *, item_dim: int) -> None:
        super().__init__()
        self.config = config
        self.item_dim = item_dim
        self.project_in = nn.Linear(item_dim, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.project_out = nn.Linear(config.dim, item_dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def forward(self, items: Tensor) -> Tensor:
        """Unit user vectors after each event: (batch, length, item_dim) -> the same shape.

        Right-padded input is fine: no position reads what comes after it.
        """
        length = items.shape[1]
        x = self.project_in(items) + self.positions.weight[:length]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        correction = self.project_out(self.norm(x))
        return functional.normalize(self._running_mean(items) + correction, dim=-1)

    def _running_mean(self, items: Tensor) -> Tensor:
        """Decayed mean of the vectors up to each position, unit length, (batch, length, item_dim)."""
        steps = torch.arange(items.shape[1], device=items.device)
        age = steps[:, None] - steps[None, :]
        weights = torch.where(age >= 0, self.config.decay ** age.clamp(min=0), 0.0).to(items.dtype)
        return functional.normalize(weights @ items, dim=-1)

    @torch.no_grad()
    def encode(
        self, histories: Histories, item_vectors: npt.NDArray[np.float32], *, batch_size: int = 512
    ) -> npt.NDArray[np.float32]:
        """User vectors as of the end of each history.

        Args:
            histories: n_users histories; rows index `item_vectors`.
            item_vectors: float32 (n_items, item_dim), unit length.
            batch_size: users encoded at once.

        Returns:
            float32 (n_users, item_dim), unit length; zeros for a user without history.
        """
        self.eval()
        device = self.project_in.weight.device
        users = np.zeros((len(histories), self.item_dim), dtype=np.float32)
        for start in range(0, len(histories), batch_size):
            rows = histories.slice(start, min(start + batch_size, len(histories))).last(self.config.max_length)
            filled = np.flatnonzero(rows[:, 0] >= 0)
            if not len(filled):
                continue
            rows = rows[filled]
            ends = (rows >= 0).sum(axis=1) - 1
            items = torch.from_numpy(item_vectors[np.maximum(rows, 0)]).to(device)  # (batch, length, item_dim)
            encoded = self(items)[torch.arange(len(filled)), torch.from_numpy(ends)]
            users[start + filled] = encoded.float().cpu().numpy()
        return users

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = {**asdict(self.config), "item_dim": self.item_dim}
        (folder / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def load(cls, folder: Path, *, device: str) -> Self:
        """Read what `save` wrote."""
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        item_dim = shape.pop("item_dim")
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            encoder = cls(HistoryConfig(**shape), item_dim=item_dim)
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
        return encoder.to(device).eval()
