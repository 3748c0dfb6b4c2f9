"""The network of the interest model: a BERT body that reads two texts at once, a head that gives one logit.

Owns how a pair of texts is tokenised, the forward pass, and the network's files. Does not own its training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_WEIGHTS_FILE = "model.safetensors"
_HEAD = "head."
_DROPOUT = 0.1
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_PER_TOKEN = 8


class CrossEncoder(nn.Module):
    """A BERT body, the mean over its tokens, and one linear logit.

    Args:
        body: a transformers model without a head, weights float32.
        tokenizer: the body's tokenizer.
        max_tokens: tokens of a pair, special tokens included.

    Raises:
        ValueError: `max_tokens` is more than the body can read.
    """

    def __init__(self, body: Any, tokenizer: Any, *, max_tokens: int) -> None:
        super().__init__()
        limit = body.config.max_position_embeddings
        if max_tokens > limit:
            raise ValueError(f"max_tokens={max_tokens} is over the {limit} tokens that the checkpoint reads")
        body.pooler = None  # the mean replaces it: an unused layer would be saved in vain
        self.body = body
        self.dropout = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(body.config.hidden_size, 1)
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def from_checkpoint(cls, checkpoint: str, *, n_layers: int, max_tokens: int) -> CrossEncoder:
        """Take the first `n_layers` layers of a BERT (0: all) and put a fresh head on them.

        Args:
            checkpoint: folder or hub id.
            n_layers: layers to keep; a body with fewer keeps what it has.
            max_tokens: tokens of a pair, special tokens included.

        Raises:
            RuntimeError: the checkpoint does not load.
            ValueError: `max_tokens` is more than the body can read.
        """
        from transformers import AutoConfig, AutoModel

        try:
            with _quiet():
                tokenizer = _read_tokenizer(checkpoint)
                config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
                config.num_hidden_layers = min(n_layers or config.num_hidden_layers, config.num_hidden_layers)
                body = AutoModel.from_pretrained(
                    checkpoint, config=config, trust_remote_code=False, dtype=torch.float32
                )
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f"checkpoint {checkpoint!r} did not load ({error}); give the folder of a BERT and tokenizer"
            ) from error
        return cls(body, tokenizer, max_tokens=max_tokens)

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int) -> CrossEncoder:
        """Read what `save` wrote."""
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        auto: Any = AutoModel
        with _quiet():
            tokenizer = _read_tokenizer(str(folder))
            body = auto.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        network = cls(body.float(), tokenizer, max_tokens=max_tokens)
        weights = load_file(folder / _WEIGHTS_FILE)
        head = {name: weights.pop(name) for name in list(weights) if name.startswith(_HEAD)}
        network.body.load_state_dict(weights)
        network.head.load_state_dict({name.removeprefix(_HEAD): tensor for name, tensor in head.items()})
        return network

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and tokenizer; the body can be a checkpoint again."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        head = {f"{_HEAD}{name}": tensor for name, tensor in self.head.state_dict().items()}
        weights = {name: tensor.cpu().contiguous() for name, tensor in (self.body.state_dict() | head).items()}
        save_file(weights, folder / _WEIGHTS_FILE, metadata={"format": "pt"})
        self.body.config.save_pretrained(folder)
        # What the last call padded and cut to would otherwise end up in the tokenizer's file.
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)

    def features(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        """Tokenise one batch of (history, item) and pad it to its longest pair; see `tokens` and `padded`."""
        return self.padded(self.tokens(pairs))

    def tokens(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Tensor]]:
        """Tokenise (history, item) pairs.

        Too long a pair loses the end of its history; where the item alone fills it, both lose their ends.

        Returns:
            For each pair what the body reads of it (`input_ids`, `attention_mask`, ...), int64 (its tokens,).
        """
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(pair=True)
        distinct = list({text for pair in pairs for text in pair})  # a history is read once, not once an item
        safe = [self._safe(text) for text in distinct]
        # Cut here: the tokenizer keeps all that it cuts off, which takes longer than the reading.
        encoded = self.tokenizer(safe, add_special_tokens=False, verbose=False)["input_ids"]
        ids = dict(zip(distinct, (each[:room] for each in encoded), strict=True))
        return [
            self._fitted(ids[history], ids[item], room) if len(ids[item]) < room else self._cut(history, item)
            for history, item in pairs
        ]

    def _fitted(self, history: list[int], item: list[int], room: int) -> dict[str, Tensor]:
        """Tokens of a pair whose item leaves room for some of the history."""
        first = [self.tokenizer.cls_token_id, *history[: room - len(item)], self.tokenizer.sep_token_id]
        second = [*item, self.tokenizer.sep_token_id]
        read = {
            "input_ids": torch.tensor(first + second),
            "token_type_ids": torch.tensor([0] * len(first) + [1] * len(second)),
            "attention_mask": torch.ones(len(first) + len(second), dtype=torch.int64),
        }
        return {name: read[name] for name in self.tokenizer.model_input_names}

    def _cut(self, history: str, item: str) -> dict[str, Tensor]:
        """Tokens of a pair whose item alone fills it."""
        read = self.tokenizer(
            self._safe(history), self._safe(item), truncation="longest_first", max_length=self.max_tokens
        )
        return {name: torch.tensor(values) for name, values in read.items()}

    def padded(self, rows: list[dict[str, Tensor]], *, n_rows: int = 0, n_tokens: int = 0) -> dict[str, Tensor]:
        """Put rows from `tokens` together on the body's device.

        Args:
            rows: at least one.
            n_rows: of the result at least; the first row is repeated.
            n_tokens: of the result at least; rows are padded.

        Returns:
            int64 (n, tokens) each.
        """
        filled = [*rows, *rows[:1] * (n_rows - len(rows))]
        return {name: self._columns(name, filled, n_tokens) for name in rows[0]}

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Give one float32 logit per pair, (n,)."""
        hidden = self.body(**features).last_hidden_state.float()  # (n, tokens, hidden)
        mask = features["attention_mask"].unsqueeze(-1)  # (n, tokens, 1)
        mean = (hidden * mask).sum(1) / mask.sum(1)  # (n, hidden)
        logits: Tensor = self.head(self.dropout(mean)).squeeze(-1)  # (n,)
        return logits.float()

    def _columns(self, name: str, rows: list[dict[str, Tensor]], n_tokens: int) -> Tensor:
        filler = self.tokenizer.pad_token_id if name == "input_ids" else 0
        columns = nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=filler)
        missing = max(0, n_tokens - columns.shape[1])
        return nn.functional.pad(columns, (0, missing), value=filler).to(self.head.weight.device)

    def _safe(self, text: str) -> str:
        """Cut a giant text before the tokenizer reads it whole, and replace what is no Unicode text."""
        return _LONE_SURROGATE.sub("\ufffd", text[: _CHARACTERS_PER_TOKEN * self.max_tokens])


def _read_tokenizer(checkpoint: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError("no fast tokenizer, that is no tokenizer.json")
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars and load reports of transformers off stderr while a model is read."""
    from transformers.utils import logging as transformers_logging

    log: Any = transformers_logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
