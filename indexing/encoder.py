"""The bi-encoder of stage 1: texts in, unit float32 vectors out.

Owns how texts are made safe and tokenised, the batches and the precision they are encoded in, and the encoder's files.
Does not own where the weights come from (`weights`), what a text says (the caller composes it), how the weights are
trained (`text_lesson`, `warm_up`), or what becomes of the vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from tqdm import tqdm

from indexing.embedding_cache import EmbeddingCache
from indexing.weights import load_model, quiet
from indexing.weights import resolve_encoder as resolve_encoder

Precision = Literal["auto", "fp32", "bf16"]

_CONFIG_FILE = "encoder.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_PER_TOKEN = 8
_BLOCK = 16_384  # texts tokenised and sorted at once: bounds memory
_KEPT = 512  # texts that a CPU encodes between two writes to the cache: a run that is stopped loses seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What to encode with.

    Attributes:
        model: folder of a SentenceTransformer or BERT (which then pools by the mean), the name of installed
            weights, or a Hugging Face hub id.
        max_tokens: tokens a text is cut to, special tokens included.
        batch_tokens: tokens per forward pass of `encode`, padding included; None means 1,024 on a CPU, whose cache
            more would overflow, and 65,536 on a GPU.
        precision: arithmetic of the forward pass; "auto" is bf16 where the device computes it natively. The
            weights themselves stay float32.

    Raises:
        ValueError: a value is outside its range.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_tokens: int = 64
    batch_tokens: int | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty; give a folder, a model name or a hub id")
        if self.max_tokens < 4:
            raise ValueError(f"max_tokens={self.max_tokens} is under 4, which leaves no room for a text")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens={self.batch_tokens} is under 1")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r} is unknown; known are {get_args(Precision)}")


def best_precision(device: str) -> Literal["bf16", "fp32"]:
    """Say which arithmetic serves `device` best: bf16 where the hardware computes it natively, else fp32."""
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(bool(capabilities.get(name, False)) for name in ("amx_bf16", "avx512_bf16"))
    return "bf16" if native else "fp32"


class BiEncoder:
    """A BERT that turns each text into one unit vector.

    Args:
        config: what to encode with.
        device: torch device, as "cpu" or "cuda:0".
        folder: where the weights lie; by default wherever `resolve_encoder(config.model)` finds them.

    Attributes:
        config: as given.
        device: as given.
        precision: "bf16" or "fp32", `config.precision` with "auto" decided for the device.
        model: the SentenceTransformer, weights float32, in evaluation mode.
        dim: length of a vector.

    Raises:
        RuntimeError: the weights are not to be had, or have no fast tokenizer.
        ValueError: `config.max_tokens` is more than the model can read.
    """

    def __init__(self, config: EncoderConfig, *, device: str, folder: Path | None = None) -> None:
        self.config = config
        self.device = device
        self._on_cpu = torch.device(device).type == "cpu"
        self.precision = best_precision(device) if config.precision == "auto" else config.precision
        self.model = load_model(str(folder) if folder else resolve_encoder(config.model), device)
        self._tokenizer: Any = self.model.tokenizer
        limit = self.model.max_seq_length
        if limit is not None and config.max_tokens > limit:
            raise ValueError(f"max_tokens={config.max_tokens} is over the {limit} tokens that {config.model} reads")
        with torch.no_grad():
            self.dim = int(self.forward(self.token_features([""])).shape[1])

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the weights, for an optimiser."""
        return self.model.parameters()

    def word_embeddings(self) -> torch.nn.Embedding:
        """The table of token embeddings, (n_tokens, width)."""
        body: Any = self.model[0]
        table: torch.nn.Embedding = body.auto_model.get_input_embeddings()
        return table

    def encode(
        self, texts: Sequence[str], *, cache: EmbeddingCache | None = None, progress: bool = False
    ) -> NDArray[np.float32]:
        """Encode `texts`, each distinct one once, longest first so that a batch pads little.

        An empty text has a (meaningless) unit vector as well. The same texts give the same bits; one text
        among other neighbours agrees to about 1e-6 in fp32 and 1e-2 in bf16.

        Args:
            texts: n strings.
            cache: of this very encoder; what it holds is not encoded, the rest is added to it.
            progress: show a bar on stderr.

        Returns:
            (n, dim) float32 in the order of `texts`; rows have length 1.

        Raises:
            ValueError: `texts` is not a sequence of strings, or the cache is another encoder's.
            RuntimeError: the cache is damaged.
        """
        safe = self._safe(texts)
        self._check_owner(cache)
        vectors = np.empty((len(safe), self.dim), dtype=np.float32)
        with _bar(len(set(safe)), progress) as bar:
            self._fill(vectors, safe, cache, bar)
        return vectors

    def encode_to(
        self,
        path: Path,
        texts: Iterable[str],
        *,
        n_texts: int | None = None,
        block_size: int = _BLOCK,
        cache: EmbeddingCache | None = None,
        progress: bool = False,
    ) -> None:
        """Encode a large catalogue into a .npy file, (n, dim) float32, in memory that does not grow with n.

        `path` appears when all is written; until then the vectors are in a file beside it.

        Args:
            path: the file, to be read with `np.load(path, mmap_mode="r")`; one that is there is replaced.
            texts: n strings, in any iterable: read once, a block at a time.
            n_texts: n, where `texts` has no length.
            block_size: texts read at once. A text is encoded once per block that it occurs in.
            cache: as in `encode`.
            progress: show a bar on stderr.

        Raises:
            ValueError: as in `encode`, or `texts` holds more or fewer than n strings.
            RuntimeError: the cache is damaged.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is the single string {texts[:40]!r}; give an iterable of strings")
        if block_size < 1:
            raise ValueError(f"block_size={block_size} is under 1")
        n_rows = _length(texts) if n_texts is None else n_texts
        self._check_owner(cache)
        stage = path.with_name(f"{path.name}.stage")
        try:
            self._stream(stage, texts, n_rows, block_size, cache, progress)
            stage.replace(path)
        finally:
            stage.unlink(missing_ok=True)

    def token_features(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise one batch.

        Returns:
            What the model reads (`input_ids`, `attention_mask`, ...), each (n, longest text) int64 on the
            device.

        Raises:
            ValueError: `texts` is not a sequence of strings.
        """
        features = self._tokenizer(
            self._safe(texts),
            padding=True,
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        )
        return {name: tensor.to(self.device) for name, tensor in features.items()}

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Embed one tokenised batch, with gradients where they are on.

        Returns:
            (n, dim) float32 on the device; rows have length 1.
        """
        with self._autocast():
            embeddings: Tensor = self.model(dict(features))["sentence_embedding"]  # (n, dim)
        return functional.normalize(embeddings.float(), dim=1)

    def unknown_share(self, texts: Sequence[str], sample: int = 2000) -> float:
        """Measure how much of the texts the tokenizer cannot read.

        Returns:
            Share in 0..1 of unknown tokens among the tokens of up to `sample` evenly spaced texts; 0 where
            there are no tokens.
        """
        safe = self._safe(texts)
        rows = np.unique(np.linspace(0, len(safe) - 1, min(sample, len(safe))).astype(int))
        if not len(rows):
            return 0.0
        token_ids = self._tokenizer(
            [safe[row] for row in rows],
            add_special_tokens=False,
            truncation=True,
            max_length=self.config.max_tokens,
        )["input_ids"]
        flat = [token_id for ids in token_ids for token_id in ids]
        return flat.count(self._tokenizer.unk_token_id) / max(len(flat), 1)

    def fingerprint(self) -> str:
        """Name the function from text to vector: sha256 over weights, tokenizer, pooling and `max_tokens`.

        It survives `save` and `load`, and depends on neither device nor precision.
        """
        digest = hashlib.sha256(json.dumps([self.config.max_tokens, _tokenizer_state(self._tokenizer)]).encode())
        after_body: list[Any] = list(self.model)[1:]
        for module in after_body:
            digest.update(json.dumps([type(module).__name__, module.get_config_dict()], sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write safetensors, tokenizer and JSON into `folder`, which SentenceTransformer can read as well."""
        _forget_last_call(self._tokenizer)
        with quiet():
            self.model.save_pretrained(str(folder), create_model_card=False)
        (folder / _CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: str) -> BiEncoder:
        """Read what `save` wrote.

        Raises:
            RuntimeError: `folder` holds no saved encoder.
        """
        path = folder / _CONFIG_FILE
        if not path.is_file():
            raise RuntimeError(f"{folder} holds no {_CONFIG_FILE}, so BiEncoder.save did not write it")
        return cls(EncoderConfig(**json.loads(path.read_text())), device=device, folder=folder)

    def _stream(
        self, path: Path, texts: Iterable[str], n_rows: int, block_size: int, cache: EmbeddingCache | None, show: bool
    ) -> None:
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_rows, self.dim))
        rest, row = iter(texts), 0
        with _bar(n_rows, show) as bar:
            while block := list(islice(rest, block_size)):
                if row + len(block) > n_rows:
                    raise ValueError(f"texts holds more than the {n_rows} strings that were announced")
                self._fill(vectors[row : row + len(block)], self._safe(block), cache, _bar(0, False))
                row += len(block)
                bar.update(len(block))
        if row < n_rows:
            raise ValueError(f"texts holds {row} strings, not the {n_rows} that were announced")
        vectors.flush()

    def _fill(self, vectors: NDArray[np.float32], texts: list[str], cache: EmbeddingCache | None, bar: tqdm) -> None:
        """Write the vector of each text into its row."""
        first: dict[str, int] = {}
        source = np.fromiter((first.setdefault(text, row) for row, text in enumerate(texts)), np.intp, len(texts))
        distinct = sorted(first, key=lambda text: (-len(text), text))
        embed = partial(self._embed, bar=bar)
        size = _KEPT if cache is not None and self._on_cpu else _BLOCK
        for start in range(0, len(distinct), size):
            block = distinct[start : start + size]
            bar.update(0 if cache is None else sum(text in cache for text in block))
            made = embed(block) if cache is None else cache.complete(block, embed)
            vectors[[first[text] for text in block]] = made
        repeated = np.flatnonzero(source != np.arange(len(texts)))
        vectors[repeated] = vectors[source[repeated]]

    def _embed(self, texts: Sequence[str], bar: tqdm) -> NDArray[np.float32]:
        """Vectors of safe texts, in their order."""
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        token_ids = self._token_ids(texts)
        weights = self._weights()
        training = self.model.training
        self.model.eval()
        with torch.inference_mode(), self._autocast():
            for batch in _batches([len(ids) for ids in token_ids], self._batch_tokens()):
                features = self._padded([token_ids[row] for row in batch])
                output: Mapping[str, Tensor] = functional_call(self.model, weights, (features,))
                unit = functional.normalize(output["sentence_embedding"].float(), dim=1)  # (batch, dim)
                vectors[batch] = unit.cpu().numpy()
                bar.update(len(batch))
        self.model.train(training)
        return vectors

    def _weights(self) -> dict[str, Tensor]:
        """What replaces the linear layers' float32 weights while encoding: cast once, not by autocast in each batch."""
        if self.precision == "fp32":
            return {}
        linear = [(name, module) for name, module in self.model.named_modules() if isinstance(module, torch.nn.Linear)]
        named = ((f"{name}.{part}", weight) for name, module in linear for part, weight in module.named_parameters())
        return {name: weight.detach().to(torch.bfloat16) for name, weight in named}

    def _batch_tokens(self) -> int:
        return self.config.batch_tokens or (1024 if self._on_cpu else 65_536)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        cut = {"truncation": True, "max_length": self.config.max_tokens}
        ids: list[list[int]] = self._tokenizer(list(texts), return_attention_mask=False, **cut)["input_ids"]
        return ids

    def _padded(self, token_ids: list[list[int]]) -> dict[str, Tensor]:
        """What the tokenizer would make of a batch, (n, longest) int64 each, on the device."""
        ids = np.full((len(token_ids), max(map(len, token_ids))), self._tokenizer.pad_token_id)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        features = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}
        read = self._tokenizer.model_input_names
        return {name: torch.from_numpy(array).to(self.device) for name, array in features.items() if name in read}

    def _check_owner(self, cache: EmbeddingCache | None) -> None:
        if cache is not None and cache.fingerprint != (own := self.fingerprint()):
            raise ValueError(f"the cache holds vectors of encoder {cache.fingerprint}, this one is {own}")

    def _autocast(self) -> torch.autocast:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _safe(self, texts: Sequence[str]) -> list[str]:
        """Cut giant texts before the tokenizer reads them whole, and replace what is no Unicode text."""
        if isinstance(texts, str):
            raise ValueError(f"texts is the single string {texts[:40]!r}; give a sequence of strings")
        limit = _CHARACTERS_PER_TOKEN * self.config.max_tokens
        safe = []
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"texts[{position}] is a {type(text).__name__}, not a string")
            safe.append(_LONE_SURROGATE.sub("\ufffd", text[:limit]))
        return safe


def _bar(total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc="encode", disable=not progress, mininterval=1.0)


def _length(texts: Iterable[str]) -> int:
    if not isinstance(texts, Sized):
        raise ValueError("texts has no length; say how many strings it holds with n_texts")
    return len(texts)


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Row numbers, longest first, in batches of at most `budget` padded tokens and at least one row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, budget // lengths[order[start]])
        yield order[start : start + size]
        start += size


def _forget_last_call(tokenizer: Any) -> None:
    """Drop the padding and truncation of the last call, which would end up in the tokenizer's file."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _tokenizer_state(tokenizer: Any) -> str:
    _forget_last_call(tokenizer)
    return str(tokenizer.backend_tokenizer.to_str())
