"""Optimisers by name, and what a checkpoint has to know about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.optim import OptimConfig
from pretrain.optim.groups import parameter_groups


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimiser: how it is made, and the state that it keeps.

    Attributes:
        build: (parameter groups, config) → torch optimiser.
        element_states: names of the state tensors that have one number per weight; each is saved in slices.
        counts_updates: True where the state has a scalar ``step`` (the number of updates that were applied).
    """

    build: Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]
    element_states: tuple[str, ...]
    counts_updates: bool


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=0.0)


OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adamw": OptimizerSpec(_adamw, ("exp_avg", "exp_avg_sq"), counts_updates=True),
    "sgd": OptimizerSpec(_sgd, ("momentum_buffer",), counts_updates=False),
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters, with decay on kernels only."""
    return OPTIMIZERS[config.name].build(parameter_groups(model.named_parameters(), config.weight_decay), config)


def ensure_state(optimizer: torch.optim.Optimizer, spec: OptimizerSpec, tensor: Tensor) -> dict[str, Tensor]:
    """The optimiser's state of one tensor, created as zeros (no update yet) where the first step has not done so."""
    state = optimizer.state[tensor]
    for key in spec.element_states:
        if state.get(key) is None:
            state[key] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
    if spec.counts_updates and "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32)
    return state
