"""LAMB: Adam's update with decay, scaled to a fraction of the tensor's norm.

A tensor without decay gets Adam's unscaled update, as in apex's FusedLAMB (``use_nvlamb`` off) and timm's ``Lamb``,
which DeiT III uses. Both also clip the global gradient norm at 1, for which there is ``optim.clip_grad`` here.

Source: You et al. (1904.00962), algorithm 2, with a trust ratio of 1 where either norm is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.scaled import LambConfig
from pretrain.optim.owned import CompleteRule, State


class Lamb(CompleteRule):
    """LAMB's update of a complete tensor."""

    def __init__(self, config: LambConfig) -> None:
        self._betas, self._eps = config.betas, config.eps

    def new_state(self, name: str, tensor: Tensor) -> State:
        """See ``CompleteRule.new_state``."""
        first, second = (torch.zeros(tensor.shape, device=tensor.device) for _ in range(2))
        return {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second}

    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """See ``CompleteRule.change``."""
        assert weights is not None
        state["step"] += 1
        count, (beta1, beta2), decay = float(state["step"]), self._betas, group["weight_decay"]
        first = state["exp_avg"].lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (second / (1 - beta2**count)).sqrt_().add_(self._eps)
        update = (first / (1 - beta1**count)).div_(denominator)
        if decay:
            update.add_(weights, alpha=decay).mul_(trust_ratio(weights, update))
        return update.mul_(-group["lr"])


def trust_ratio(tensor: Tensor, update: Tensor) -> Tensor:
    """Norm of the weights over that of the update, a scalar on the device; 1 where either is 0."""
    weight_norm, update_norm = torch.linalg.vector_norm(tensor), torch.linalg.vector_norm(update)
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
