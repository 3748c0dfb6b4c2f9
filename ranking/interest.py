"""The interest model of stage 2: how well an item's text matches a user's history.

Owns learning from lists of candidates and scoring pairs. Does not own the network and its tokens
(`cross_encoder`), which scores are remembered (`score_cache`), what the two texts say, which candidates it is shown, or
what becomes of the score.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ranking.cross_encoder import CrossEncoder
from ranking.score_cache import ScoreCache, fingerprints

Precision = Literal["auto", "fp32", "bf16"]

_CONFIG_FILE = "interest.json"
_MIN_GROUPS = 8
_HEAD_LEARNING_RATE = 1e-3
_WARM_UP = 0.1
_CLIP = 1.0
_LEAST = {
    "n_layers": 0,
    "max_tokens": 8,
    "epochs": 1,
    "group_size": 2,
    "groups_per_step": 1,
    "max_groups": _MIN_GROUPS,
    "weight_decay": 0,
    "cache_size": 0,
}
_BLOCK = 4096  # pairs tokenised at once
_TOKEN_STEP = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class InterestConfig:
    """What the model is and how it is trained.

    Attributes:
        n_layers: how many of the checkpoint's first layers to keep, at most; 0 keeps all.
        max_tokens: tokens of a pair, special tokens included.
        epochs: passes over the training groups.
        group_size: candidates of a training group: the taken item and sampled ones that were not taken.
        groups_per_step: groups per optimiser step.
        max_groups: training groups that are used; more are subsampled.
        learning_rate: peak rate of the checkpoint's layers (the fresh head learns at 1e-3).
        weight_decay: AdamW's decay of the body's weight matrices.
        batch_size: pairs per forward pass when scoring; None means 16 on a CPU and 256 on a GPU. A smaller rest is
            filled up.
        cache_size: pairs whose scores are remembered in memory, 250 bytes each; 0 remembers none.
        precision: arithmetic of the forward pass; "auto" is bf16 where the device computes it natively.

    Raises:
        ValueError: a value is outside its range.
    """

    n_layers: int = 2
    max_tokens: int = 48
    epochs: int = 1
    group_size: int = 16
    groups_per_step: int = 4
    max_groups: int = 400
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    batch_size: int | None = None
    cache_size: int = 100_000
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} is under {least}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is under 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} is not above 0")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r} is unknown; known are {get_args(Precision)}")


class _Group(NamedTuple):
    """One list to learn from: a user's history, the item taken, and items retrieved but not taken."""

    history: str
    taken: str
    others: list[str]


class InterestModel:
    """Scores how well an item's text matches a user's history.

    Args:
        config: what the model is and how it is trained.
        checkpoint: folder or hub id of the BERT whose first layers it starts from.
        device: torch device, as "cpu" or "cuda:0".
        seed: decides the fresh head, dropout, and which groups and candidates are sampled.

    Attributes:
        precision: "bf16" or "fp32", `config.precision` with "auto" decided for the device.
    """

    def __init__(self, config: InterestConfig, *, checkpoint: str, device: str, seed: int) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.device = device
        self.seed = seed
        self.precision = _best_precision(device) if config.precision == "auto" else config.precision
        self._network: CrossEncoder | None = None
        self._cache = ScoreCache(config.cache_size)

    def fit(
        self,
        histories: Sequence[str],
        candidates: Sequence[Sequence[str]],
        *,
        max_seconds: float | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn to put the taken item above what was retrieved beside it, starting from the checkpoint.

        The same input and seed give the same model on CPU, and torch's global random state stays as it was.

        Args:
            histories: one text per group, what matters most first: a pair too long loses its history's end.
            candidates: per group the taken item's text first, then texts of items retrieved but not taken.
                Those whose text equals the taken one are left out, and groups with no other candidate too.
            max_seconds: training ends after the step that passes it; None for no limit. With a limit the result
                depends on the machine's speed.
            progress: show a progress bar.

        Raises:
            ValueError: lengths differ, a group is empty, fewer than 8 groups are usable, or
                `config.max_tokens` is more than the checkpoint reads.
            RuntimeError: the checkpoint does not load, or training diverged.
        """
        groups = _usable_groups(histories, candidates)
        rng = np.random.default_rng(self.seed)
        if len(groups) > self.config.max_groups:
            kept = np.sort(rng.choice(len(groups), self.config.max_groups, replace=False))
            groups = [groups[row] for row in kept]
        with _private_random_state(self.device, self.seed):
            network = CrossEncoder.from_checkpoint(
                self.checkpoint, n_layers=self.config.n_layers, max_tokens=self.config.max_tokens
            ).to(self.device)
            self._train(network, groups, rng, max_seconds, progress)
        self._network, self._cache = network.eval(), ScoreCache(self.config.cache_size)
        return self

    def score(self, histories: Sequence[str], items: Sequence[str], *, progress: bool = False) -> NDArray[np.float32]:
        """Score pairs, each distinct one once, and none that was scored lately.

        A pair's score depends on nothing but its two texts: it is read in a batch whose shape follows from its own
        length, so that what is asked beside it, or was asked before, does not change the score. On a CPU that holds to
        the last bit with the default `batch_size`; other kernels may tell rows of a batch apart by rounding.

        Args:
            histories: (n,) texts, composed as for `fit`.
            items: (n,) texts, `items[i]` to be matched with `histories[i]`.
            progress: show a progress bar.

        Returns:
            (n,) float32 logits in the order given. Higher is a better match; they compare within a history.

        Raises:
            RuntimeError: the model is not fitted.
            ValueError: lengths differ.
        """
        network, cache = self._fitted(), self._cache
        if len(histories) != len(items):
            raise ValueError(f"{len(histories)} histories for {len(items)} items; a pair needs one of each")
        pairs = list(zip(histories, items, strict=True))
        distinct = sorted(set(pairs))
        keys = fingerprints(distinct)
        known = cache.get(keys)
        new = [row for row, score in enumerate(known) if score is None]
        scores = np.array([np.nan if score is None else score for score in known], dtype=np.float32)
        scores[new] = self._read(network, [distinct[row] for row in new], progress)
        cache.put([keys[row] for row in new], scores[new].tolist())
        row_of = {pair: row for row, pair in enumerate(distinct)}
        return scores[np.fromiter((row_of[pair] for pair in pairs), dtype=np.intp, count=len(pairs))]

    def save(self, folder: Path) -> None:
        """Write the model into `folder`: safetensors, tokenizer and JSON, all that `load` needs.

        Raises:
            RuntimeError: the model is not fitted.
        """
        self._fitted().save(folder)
        state = {"config": asdict(self.config), "seed": self.seed}
        (folder / _CONFIG_FILE).write_text(json.dumps(state, indent=2) + "\n")

    def forget(self) -> None:
        """Remember no score any more; a call that is under way keeps what it adds to itself."""
        self._cache = ScoreCache(self.config.cache_size)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> InterestModel:
        """Read what `save` wrote; the folder is the loaded model's checkpoint: a new `fit` starts from there.

        Raises:
            RuntimeError: `folder` holds no saved model.
        """
        path = folder / _CONFIG_FILE
        if not path.is_file():
            raise RuntimeError(f"{folder} holds no {_CONFIG_FILE}, so InterestModel.save did not write it")
        state = json.loads(path.read_text())
        config = InterestConfig(**state["config"])
        model = cls(config, checkpoint=str(folder), device=device, seed=state["seed"])
        with _private_random_state(device, model.seed):
            model._network = CrossEncoder.load(folder, max_tokens=config.max_tokens).to(device).eval()
        return model

    def _read(self, network: CrossEncoder, pairs: list[tuple[str, str]], progress: bool) -> NDArray[np.float32]:
        """Score each pair by the network."""
        size = self.config.batch_size or (16 if torch.device(self.device).type == "cpu" else 256)
        scores = np.empty(len(pairs), dtype=np.float32)
        # One autocast region around all batches: the bf16 copies of the weights are made once, not per batch.
        with (
            torch.no_grad(),
            self._autocast(),
            tqdm(total=len(pairs), desc="interest", disable=not progress, mininterval=1.0) as bar,
        ):
            for start in range(0, len(pairs), _BLOCK):
                tokens = network.tokens(pairs[start : start + _BLOCK])
                for rows, n_tokens in _batches([len(row["input_ids"]) for row in tokens], size, network.max_tokens):
                    features = network.padded([tokens[row] for row in rows], n_rows=size, n_tokens=n_tokens)
                    scores[start + rows] = network(features)[: len(rows)].cpu().numpy()
                    bar.update(len(rows))
        return scores

    def _train(
        self,
        network: CrossEncoder,
        groups: list[_Group],
        rng: np.random.Generator,
        max_seconds: float | None,
        progress: bool,
    ) -> None:
        steps = self.config.epochs * -(-len(groups) // self.config.groups_per_step)
        started = time.monotonic()

        def place(step: int) -> float:
            """How far training is, 0 to `steps`: by steps or, from the second on, by time, whichever is further."""
            spent = time.monotonic() - started if step else 0.0
            return min(steps, max(step, steps * spent / (max_seconds or math.inf)))

        optimizer = _optimizer(network, self.config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(place(step), steps))
        network.train()
        with tqdm(total=steps, desc="fit interest", disable=not progress, mininterval=1.0) as bar:
            for step, step_groups in enumerate(self._steps(groups, rng)):
                if step and place(step) >= steps:
                    break
                loss = self._loss(network, step_groups, rng)
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the interest loss became {loss.item()} in step {step + 1} of {steps}; "
                        f"lower learning_rate={self.config.learning_rate}"
                    )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
                optimizer.step()
                schedule.step()
                bar.update()

    def _steps(self, groups: list[_Group], rng: np.random.Generator) -> Iterator[list[_Group]]:
        for _ in range(self.config.epochs):
            order = rng.permutation(len(groups))
            for start in range(0, len(order), self.config.groups_per_step):
                yield [groups[row] for row in order[start : start + self.config.groups_per_step]]

    def _loss(self, network: CrossEncoder, groups: list[_Group], rng: np.random.Generator) -> Tensor:
        pairs, sizes = [], []
        for group in groups:
            n_others = min(len(group.others), self.config.group_size - 1)
            others = rng.choice(len(group.others), n_others, replace=False)
            texts = [group.taken, *(group.others[row] for row in others)]
            pairs += [(group.history, text) for text in texts]
            sizes.append(len(texts))
        with self._autocast():
            logits = network(network.features(pairs))
        return group_softmax_loss(logits, sizes)

    def _fitted(self) -> CrossEncoder:
        if self._network is None:
            raise RuntimeError("the interest model is not fitted: call fit, or InterestModel.load")
        return self._network

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def group_softmax_loss(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy of each group's softmax against its first member, averaged over the groups.

    Source: Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (ListNet), the
    top-one probability model, with all of the true distribution on the taken item.

    Args:
        logits: (sum of sizes,) float32, group after group, the taken item first in each.
        sizes: members per group.

    Returns:
        A scalar.
    """
    losses = [torch.logsumexp(group, 0) - group[0] for group in torch.split(logits, list(sizes))]
    return torch.stack(losses).mean()


def _batches(lengths: list[int], size: int, most: int) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Rows of like length, at most `size` together, and the number of tokens (at most `most`) they are padded to."""
    steps = -(-np.array(lengths) // _TOKEN_STEP)
    for step in np.unique(steps):
        members = np.flatnonzero(steps == step)
        for start in range(0, len(members), size):
            yield members[start : start + size], min(int(step) * _TOKEN_STEP, most)


def _usable_groups(histories: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[_Group]:
    if len(histories) != len(candidates):
        raise ValueError(f"{len(histories)} histories for {len(candidates)} groups of candidates")
    groups = []
    for row, (history, texts) in enumerate(zip(histories, candidates, strict=True)):
        if not texts:
            raise ValueError(f"candidates[{row}] is empty; its first text must be the taken item's")
        others = [text for text in texts[1:] if text != texts[0]]
        if others:
            groups.append(_Group(history, texts[0], others))
    if len(groups) < _MIN_GROUPS:
        raise ValueError(
            f"{len(groups)} of {len(histories)} groups hold a candidate that differs from the taken item, "
            f"fewer than {_MIN_GROUPS}: too little to learn interest from"
        )
    return groups


def _optimizer(network: CrossEncoder, config: InterestConfig) -> torch.optim.AdamW:
    """Decay the matrices only, and let the fresh head learn faster than the pre-trained body."""
    body = list(network.body.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in body if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in body if weight.ndim <= 1]},
        {"params": list(network.head.parameters()), "lr": _HEAD_LEARNING_RATE},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)


def _rate(step: float, steps: int) -> float:
    """Share of the peak learning rate at `step`, 0 to `steps`: up over the first tenth, then down to 0."""
    warm = max(1, int(_WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _best_precision(device: str) -> Literal["bf16", "fp32"]:
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(bool(capabilities.get(name, False)) for name in ("amx_bf16", "avx512_bf16"))
    return "bf16" if native else "fp32"


@contextmanager
def _private_random_state(device: str, seed: int) -> Iterator[None]:
    """Seed torch for the block and give its generators back as they were."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed_all(seed)
        yield
