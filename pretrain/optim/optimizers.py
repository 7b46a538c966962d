"""Registry of optimisers, and access to their state for checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.optim import AdafactorConfig, AdamWConfig, LambConfig, OptimConfig, SGDConfig
from pretrain.optim.adafactor import Adafactor, attention_views
from pretrain.optim.elementwise import AdamWBf16, SGDBf16, StatefulOptimizer
from pretrain.optim.groups import assign_rules, parameter_groups
from pretrain.optim.lamb import Lamb

Groups = list[dict[str, Any]]

# torch's optimisers, whose state we create before their first step. Ours create their own (``StatefulOptimizer``).
TORCH_STATES: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
STEP = "step"


def _adamw(groups: Groups, config: AdamWConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    if config.momentum_dtype == "bf16":
        return AdamWBf16(groups, config.lr, config.betas, config.eps)
    kwargs: dict[str, Any] = {"fused": True} if fused else {}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, **kwargs)


def _sgd(groups: Groups, config: SGDConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    if config.momentum_dtype == "bf16":
        return SGDBf16(groups, config.lr, config.momentum)
    kwargs: dict[str, Any] = {"fused": True} if fused else {}
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=0.0, **kwargs)


def _adafactor(groups: Groups, config: AdafactorConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.momentum_dtype]
    caps = (config.beta2_cap, config.beta2_power)
    return Adafactor(groups, config.lr, config.momentum, dtype, *caps, attention_views(model))


def _lamb(groups: Groups, config: LambConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return Lamb(groups, config.lr, config.betas, config.eps)


OPTIMIZERS: dict[str, Callable[[Groups, Any, nn.Module, bool], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
}


def build_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters, grouped by name. Disables gradients of frozen parameters.

    Args:
        model: unsharded, on its device. With ``layer_decay``, its ``layer_ids()`` maps parameters to layers.
        config: the settings.
        fused: use torch's fused kernel, for fp32 AdamW and SGD.

    Raises:
        ConfigError: an override matches no parameter.
    """
    named = dict(model.named_parameters())
    layer_ids = None if config.layer_decay is None else model.layer_ids()  # type: ignore[operator]
    rules = assign_rules({name: parameter.ndim for name, parameter in named.items()}, config, layer_ids)
    for name, parameter in named.items():
        if rules[name].frozen:
            parameter.requires_grad_(False)
    return OPTIMIZERS[config.name](parameter_groups(named.items(), rules), config, model, fused)


def ensure_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """The optimiser's state of one tensor, created in its initial form if there was no step yet."""
    state = optimizer.state[tensor]
    if not state or None in state.values():
        fresh = _new_state(optimizer, tensor)
        state.update({key: value for key, value in fresh.items() if state.get(key) is None})
    return state


def _new_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, StatefulOptimizer):
        return optimizer.new_state(tensor)
    names = TORCH_STATES[type(optimizer)]
    state = {name: torch.zeros_like(tensor, memory_format=torch.preserve_format) for name in names}
    if isinstance(optimizer, torch.optim.AdamW):
        # A fused kernel reads its step counter on the device.
        device = tensor.device if optimizer.defaults.get("fused") else torch.device("cpu")
        state[STEP] = torch.zeros((), dtype=torch.float32, device=device)
    return state
