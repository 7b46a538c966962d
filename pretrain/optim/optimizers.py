"""Registry of optimisers, and access to their state for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.optim.base import OptimConfig
from pretrain.config.schema.optim.elementwise import AdamWConfig, SGDConfig
from pretrain.config.schema.optim.matrices import MatrixConfig
from pretrain.config.schema.optim.scaled import AdafactorConfig, LambConfig
from pretrain.config.schema.optim.schedule_free import ScheduleFreeConfig
from pretrain.optim.adafactor import Adafactor
from pretrain.optim.elementwise import AdamWBf16, SGDBf16, StatefulOptimizer
from pretrain.optim.factored import views_of
from pretrain.optim.groups import assign_rules, parameter_groups
from pretrain.optim.lamb import Lamb
from pretrain.optim.matrices import Matrices, matrices_of
from pretrain.optim.muon import Muon
from pretrain.optim.owned import CompleteRule, OwnedOptimizer
from pretrain.optim.schedule_free import ScheduleFreeAdamW
from pretrain.optim.schedules import Schedule
from pretrain.optim.shampoo import Shampoo
from pretrain.optim.soap import Soap

Groups = list[dict[str, Any]]
Make = Callable[[Groups, Any, nn.Module, bool], torch.optim.Optimizer]

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
    named = dict(model.named_parameters())
    return OwnedOptimizer(groups, config, Adafactor(config, views_of(_shapes(named), _heads(model))), named)


def _lamb(groups: Groups, config: LambConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return OwnedOptimizer(groups, config, Lamb(config), dict(model.named_parameters()))


def _of_matrices(make: Callable[[Any, Mapping[str, Matrices]], CompleteRule]) -> Make:
    """An optimiser whose rule knows which matrices a parameter consists of."""

    def build(groups: Groups, config: MatrixConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        named = dict(model.named_parameters())
        return OwnedOptimizer(groups, config, make(config, matrices_of(_shapes(named), _heads(model))), named)

    return build


def _shapes(named: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in named.items()}


def _heads(model: nn.Module) -> dict[str, int]:
    """Name of each attention module → number of its heads."""
    numbers = {name: getattr(module, "num_heads", None) for name, module in model.named_modules()}
    return {name: number for name, number in numbers.items() if isinstance(number, int)}


def _schedule_free(groups: Groups, config: ScheduleFreeConfig, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return ScheduleFreeAdamW(groups, config)


OPTIMIZERS: dict[str, Make] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "muon": _of_matrices(Muon),
    "shampoo": _of_matrices(Shampoo),
    "soap": _of_matrices(Soap),
    "schedule_free": _schedule_free,
}


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, fused: bool = False, schedule: Schedule | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters, grouped by name. Disables gradients of frozen parameters.

    Parameters without gradients (``optim.lora``) stay frozen.

    Args:
        model: unsharded, on its device. If ``config.needs_layers``, its ``layer_ids()`` maps parameters to layers.
        config: the settings.
        fused: use torch's fused kernel, for fp32 AdamW and SGD.
        schedule: number of updates before → learning rate; None: always ``config.lr``.

    Raises:
        ConfigError: an override matches no parameter.
    """
    named = dict(model.named_parameters())
    layer_ids = model.layer_ids() if config.needs_layers else None  # type: ignore[operator]
    frozen = {name for name, parameter in named.items() if not parameter.requires_grad}
    rules = assign_rules({name: parameter.ndim for name, parameter in named.items()}, config, layer_ids, frozen)
    for name, parameter in named.items():
        if rules[name].frozen:
            parameter.requires_grad_(False)
    optimizer = OPTIMIZERS[config.name](parameter_groups(named, rules), config, model, fused)
    if schedule is not None and isinstance(optimizer, StatefulOptimizer):
        optimizer.follow(schedule)
    return optimizer


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
