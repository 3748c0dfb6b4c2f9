"""Which of an encoder's weights a fine-tuning may change.

Owns the choice, and adapters from their insertion until they are merged into the weights. Does not own the training.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from indexing.encoder import BiEncoder

Scope = Literal["auto", "full", "last", "lora", "adalora", "frozen"]

_SHORT = 120.0  # seconds on a CPU within which the last blocks' cheaper steps are worth more than a full model's


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """How much of the encoder is fine-tuned.

    Attributes:
        scope: "full"; "last" (the last blocks and what follows them); "lora" and "adalora" (adapters on the attention,
            through PEFT); "frozen"; "auto" is "full", or "last" on a CPU with less than two minutes.
        n_last: blocks of "last".
        rank: of an adapter; the mean rank where AdaLoRA distributes it.
        alpha: an adapter's output is scaled by alpha / rank.
    """

    scope: Scope = "auto"
    n_last: int = 2
    rank: int = 8
    alpha: int = 16

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"tuning: scope={self.scope!r} is unknown; known are {get_args(Scope)}")
        if min(self.n_last, self.rank, self.alpha) < 1:
            raise ValueError(f"tuning: n_last, rank and alpha must be at least 1, got {self}")

    def scope_on(self, device: str, seconds: float | None = None) -> Scope:
        """The scope with "auto" decided for a device and the seconds that training may take (None: no limit)."""
        if self.scope != "auto":
            return self.scope
        hurried = seconds is not None and seconds < _SHORT and torch.device(device).type == "cpu"
        return "last" if hurried else "full"


class Tuning:
    """An encoder whose scope is set.

    Attributes:
        scope: with "auto" decided.
        parameters: those to hand to an optimiser; none where the encoder is frozen.
    """

    def __init__(self, scope: Scope, parameters: list[nn.Parameter], adapter: Any = None) -> None:
        self.scope = scope
        self.parameters = parameters
        self._adapter = adapter

    def after_step(self, step: int) -> None:
        """Let AdaLoRA move rank between the layers: to be called after `optimizer.step()`, before `zero_grad()`.

        Args:
            step: number of the step, from 0.
        """
        if self.scope == "adalora":
            self._adapter.update_and_allocate(step)


@contextmanager
def with_scope(
    encoder: BiEncoder, config: TuningConfig, *, steps: int, seed: int, seconds: float | None = None
) -> Iterator[Tuning]:
    """Set what may be trained; at the end, error or not, merge adapters and make every weight trainable again.

    So an encoder that was trained with adapters is an ordinary one afterwards, for `save` and `fingerprint` as well.

    Args:
        encoder: its gradients are switched, and adapters put into it, in place.
        config: the scope.
        steps: of the training, which AdaLoRA's schedule must know.
        seed: of the adapters' start.
        seconds: what the training may take, for "auto".

    Raises:
        ImportError: an adapter is wanted, and PEFT is not installed.
        ValueError: the model has fewer blocks than `n_last`, PEFT does not know its architecture, or `steps` is too
            small for AdaLoRA.
    """
    scope = config.scope_on(encoder.device, seconds)
    adapter = None
    try:
        if scope in ("lora", "adalora"):
            adapter = _adapter(encoder, config, scope, steps, seed)
        elif scope == "last":
            _train_last(encoder, config.n_last)
        elif scope == "frozen":
            encoder.model.requires_grad_(False)
        yield Tuning(scope, [weight for weight in encoder.parameters() if weight.requires_grad], adapter)
    finally:
        if adapter is not None:
            adapter.merge_and_unload()
        encoder.model.requires_grad_(True)


def _train_last(encoder: BiEncoder, n_last: int) -> None:
    """Gradients for the last blocks of the body, and for the modules after it."""
    body: Any = encoder.model[0]
    stacks = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(stacks, key=len, default=nn.ModuleList())
    if n_last > len(blocks):
        raise ValueError(f"tuning: n_last={n_last} is over the {len(blocks)} blocks of {encoder.config.model}")
    body.requires_grad_(False)
    for block in list(blocks)[-n_last:]:
        block.requires_grad_(True)


def _adapter(encoder: BiEncoder, config: TuningConfig, scope: Scope, steps: int, seed: int) -> Any:
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ImportError(f'scope={scope!r} needs PEFT: pip install "recsys-twostage[lora]"') from error
    body: Any = encoder.model[0]
    device = torch.device(encoder.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers, nothing a caller could change
        torch.manual_seed(seed)
        adapter: Any = get_peft_model(body.auto_model, _adapter_config(config, scope, steps))
    return adapter


def _adapter_config(config: TuningConfig, scope: Scope, steps: int) -> Any:
    from peft import AdaLoraConfig, LoraConfig

    if scope == "lora":
        return LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0)
    if steps < 10:
        raise ValueError(f"tuning: steps={steps} is under 10, too few for AdaLoRA to distribute rank; use scope='lora'")
    # Source: Zhang et al. 2023, "AdaLoRA", section 4: start at 1.5 times the rank, warm up, cut, then settle.
    return AdaLoraConfig(
        init_r=-(-3 * config.rank // 2),
        target_r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        total_step=steps,
        tinit=steps // 10,
        tfinal=steps // 3,
    )
