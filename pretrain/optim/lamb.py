"""LAMB: Adam's update with decay, scaled to a fraction of the tensor's norm. It needs unsharded tensors.

A tensor without decay gets Adam's unscaled update, as in apex's FusedLAMB (``use_nvlamb`` off) and timm's ``Lamb``,
which DeiT III uses. Both also clip the global gradient norm at 1, for which there is ``optim.clip_grad`` here.

Source: You et al. (1904.00962), algorithm 2, with a trust ratio of 1 where either norm is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.optim.elementwise import StatefulOptimizer


class Lamb(StatefulOptimizer):
    """See the module."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """See ``StatefulOptimizer.new_state``."""
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}

    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``."""
        state["step"] += 1
        count, (beta1, beta2), decay = float(state["step"]), group["betas"], group["weight_decay"]
        first = state["exp_avg"].lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
        update = (first / (1 - beta1**count)).div_(denominator)
        if decay:
            update.add_(tensor, alpha=decay).mul_(trust_ratio(tensor, update))
        tensor.add_(update, alpha=-group["lr"])


def trust_ratio(tensor: Tensor, update: Tensor) -> Tensor:
    """Norm of the weights over that of the update, a scalar on the device; 1 where either is 0."""
    weight_norm, update_norm = torch.linalg.vector_norm(tensor), torch.linalg.vector_norm(update)
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
