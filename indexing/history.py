"""The user tower: sequences of item vectors in, user vectors in the same space out.

Owns the ragged history arrays and the causal transformer over them. Knows neither texts nor how the tower is
trained (`indexing/tower_lesson.py`) nor who the users are: user `i` is position `i` of the histories given.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

N_GAPS = 32  # the last bucket begins at 2 ** 30 seconds, 34 years


@dataclass(frozen=True, slots=True)
class Histories:
    """What each user took, oldest first, as flat arrays and offsets.

    Attributes:
        offsets: int64 (n_users + 1,), user `i` owns positions `offsets[i]` to `offsets[i + 1]`.
        item_rows: int32 (n_events,), rows of the items table.
        event_rows: int16 (n_events,), kind of each event, or None where all are of one kind.
        seconds: float64 (n_events,), Unix time, or None where only the order is known.
        weights: float32 (n_events,), worth of each event as something to learn from, or None for 1.
    """

    offsets: npt.NDArray[np.int64]
    item_rows: npt.NDArray[np.int32]
    event_rows: npt.NDArray[np.int16] | None = None
    seconds: npt.NDArray[np.float64] | None = None
    weights: npt.NDArray[np.float32] | None = None

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
        return self._pick(offsets - offsets[0], slice(int(offsets[0]), int(offsets[-1])))

    def take(self, users: npt.NDArray[np.int64]) -> "Histories":
        """Some users, renumbered in the order given."""
        lengths = self.lengths[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return self._pick(offsets, np.arange(offsets[-1]) + np.repeat(self.offsets[users] - offsets[:-1], lengths))

    def keep(self, items: npt.NDArray[np.bool_]) -> "Histories":
        """The same users with only the events of some items, bool (n_items,)."""
        kept = items[self.item_rows]
        owner = np.repeat(np.arange(len(self)), self.lengths)[kept]
        lengths = np.bincount(owner, minlength=len(self))
        return self._pick(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), kept)

    def without_last(self, users: npt.NDArray[np.int64]) -> "Histories":
        """All users, but without the newest event of some."""
        kept = np.ones(len(self.item_rows), dtype=np.bool_)
        kept[self.offsets[users + 1] - 1] = False
        lengths = self.lengths
        lengths[users] -= 1
        return self._pick(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), kept)

    def newest(self, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Positions of each user's newest `n` events, oldest first, and which of them are there, each (n_users, n)."""
        starts = np.maximum(self.offsets[1:] - n, self.offsets[:-1])
        positions = starts[:, None] + np.arange(n)
        there = positions < self.offsets[1:, None]
        return np.where(there, positions, 0), there

    def _pick(self, offsets: npt.NDArray[np.int64], chosen: Any) -> "Histories":
        optional = (self.event_rows, self.seconds, self.weights)
        return Histories(
            offsets, self.item_rows[chosen], *(None if part is None else part[chosen] for part in optional)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryConfig:
    """Shape of the history encoder.

    Attributes:
        max_length: newest events read per user.
        dim: width inside the transformer.
        n_layers: transformer blocks.
        n_heads: attention heads; must divide `dim`.
        dropout: share dropped in training.
        decay: weight of an event relative to the next newer one in the running mean that the transformer corrects,
            before training; it is learnt.
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
        if not 0.0 <= self.dropout < 1.0 or not 0.0 < self.decay < 1.0:
            raise ValueError(f"history: dropout must lie in [0, 1) and decay in (0, 1), got {self}")


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

    def last(self, x: Tensor) -> Tensor:
        """`forward` at the last position only, without dropout: (batch, length, dim) -> (batch, 1, dim)."""
        batch, length, dim = x.shape
        normed, weight, bias = self.norm_attention(x), self.qkv.weight, self.qkv.bias
        query = functional.linear(normed[:, -1:], weight[:dim], bias[:dim]).view(batch, 1, self.n_heads, -1)
        both = functional.linear(normed, weight[dim:], bias[dim:]).view(batch, length, 2, self.n_heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, dim / heads)
        attended = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value)
        x = x[:, -1:] + self.out(attended.transpose(1, 2).reshape(batch, 1, dim))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]


class HistoryEncoder(nn.Module):
    """Causal transformer over item vectors, in the spirit of SASRec (Source: Kang and McAuley 2018).

    A user vector is the decayed mean of the item vectors so far plus a learnt correction that starts at zero: an
    untrained encoder is already a sensible one, and one click moves the vector at once. The kind of an event and the
    time since the event before it are added to what the transformer reads; both start without effect.
    """

    def __init__(self, config: HistoryConfig, *, item_dim: int, n_event_kinds: int = 1) -> None:
        super().__init__()
        self.config = config
        self.item_dim = item_dim
        self.n_event_kinds = n_event_kinds
        self.project_in = nn.Linear(item_dim, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.event_kinds = nn.Embedding(n_event_kinds, config.dim)
        self.gaps = nn.Embedding(N_GAPS, config.dim)
        self.decay = nn.Parameter(torch.tensor(math.log(config.decay / (1.0 - config.decay))))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.project_out = nn.Linear(config.dim, item_dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        for weights in (
            self.event_kinds.weight, self.gaps.weight, self.project_out.weight, self.project_out.bias,
        ):  # fmt: skip
            nn.init.zeros_(weights)

    def forward(self, items: Tensor, event_rows: Tensor | None = None, gaps: Tensor | None = None) -> Tensor:
        """Unit user vectors after each event: (batch, length, item_dim) -> the same shape.

        Right-padded input is fine: no position reads what comes after it.

        Args:
            items: (batch, length, item_dim), vectors of the items taken.
            event_rows: int64 (batch, length), kind of each event, or None.
            gaps: int64 (batch, length), what `gap_buckets` made of the times, or None.
        """
        x = self._read(items, event_rows, gaps)
        for block in self.blocks:
            x = block(x)
        correction = self.project_out(self.norm(x))
        return functional.normalize((self._running_mean(items) + correction).float(), dim=-1)

    def _read(self, items: Tensor, event_rows: Tensor | None, gaps: Tensor | None) -> Tensor:
        """What the transformer reads of the events, (batch, length, dim)."""
        x: Tensor = self.project_in(items) + self.positions.weight[: items.shape[1]]
        if event_rows is not None:
            x = x + self.event_kinds(event_rows)
        if gaps is not None:
            x = x + self.gaps(gaps)
        return self.dropout(x)  # type: ignore[no-any-return]

    def _running_mean(self, items: Tensor) -> Tensor:
        """Decayed mean of the vectors up to each position, unit length, (batch, length, item_dim)."""
        steps = torch.arange(items.shape[1], device=items.device)
        age = steps[:, None] - steps[None, :]
        weights = torch.where(age >= 0, torch.sigmoid(self.decay) ** age.clamp(min=0), 0.0).to(items.dtype)
        return functional.normalize(weights @ items, dim=-1)

    @torch.no_grad()
    def encode(
        self, histories: Histories, item_vectors: npt.NDArray[np.float32], *, batch_size: int = 128
    ) -> npt.NDArray[np.float32]:
        """User vectors as of the end of each history.

        Args:
            histories: n_users histories; rows index `item_vectors`.
            item_vectors: float32 (n_items, item_dim), unit length.
            batch_size: users encoded at once.

        Returns:
            float32 (n_users, item_dim), unit length; zeros for a user without history.
        """
        if self.training:
            self.eval()
        users = np.zeros((len(histories), self.item_dim), dtype=np.float32)
        lengths = np.minimum(histories.lengths, self.config.max_length)
        positions, _ = histories.newest(self.config.max_length)
        gaps = gap_buckets(histories)
        for length in np.unique(lengths[lengths > 0]):  # users of one length need no padding
            for chosen in _pieces(np.flatnonzero(lengths == length), batch_size):
                where = positions[chosen, :length]
                users[chosen] = self._last(histories, item_vectors, gaps, where).float().cpu().numpy()
        return users

    def _last(
        self,
        histories: Histories,
        item_vectors: npt.NDArray[np.float32],
        gaps: npt.NDArray[np.int64] | None,
        where: npt.NDArray[np.int64],
    ) -> Tensor:
        """`forward` at the last position only, (batch, item_dim), of events at positions (batch, length)."""
        device = self.project_in.weight.device
        items = torch.from_numpy(item_vectors[histories.item_rows[where]]).to(device)
        kinds = None if histories.event_rows is None else histories.event_rows[where].astype(np.int64)
        event_rows = None if kinds is None else torch.from_numpy(kinds).to(device)
        gap_rows = None if gaps is None else torch.from_numpy(gaps[where]).to(device)
        x = self._read(items, event_rows, gap_rows)
        for block in self.blocks[:-1]:
            x = block(x)
        x = cast(Block, self.blocks[-1]).last(x) if len(self.blocks) else x
        correction = self.project_out(self.norm(x[:, -1]))
        age = torch.arange(items.shape[1] - 1, -1, -1, device=device)
        mean = functional.normalize(torch.sigmoid(self.decay) ** age @ items, dim=-1)
        return functional.normalize(mean + correction, dim=-1)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = {**asdict(self.config), "item_dim": self.item_dim, "n_event_kinds": self.n_event_kinds}
        (folder / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def load(cls, folder: Path, *, device: str) -> Self:
        """Read what `save` wrote."""
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {name: shape.pop(name) for name in ("item_dim", "n_event_kinds")}
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            encoder = cls(HistoryConfig(**shape), **sizes)
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
        return encoder.to(device).eval()


def gap_buckets(histories: Histories) -> npt.NDArray[np.int64] | None:
    """Time since the same user's event before, int64 (n_events,): 0 for a first event, else 1 + log2 of the seconds.

    None where times are not known.
    """
    if histories.seconds is None:
        return None
    passed = np.diff(histories.seconds, prepend=0.0)
    buckets = 1 + np.floor(np.log2(np.maximum(passed, 1.0))).astype(np.int64)
    buckets[histories.offsets[:-1][histories.lengths > 0]] = 0
    return np.minimum(buckets, N_GAPS - 1)


def _pieces(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return np.split(rows, range(size, len(rows), size))
