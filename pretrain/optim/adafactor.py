"""Adafactor as used by Scaling ViT: a second moment factored by rows and columns, momentum of scaled gradients.

The second moment of a matrix (R, C) is stored as its row means (R, 1) and column means (1, C). There is no update
clipping and no learning rate relative to the weight's size.

Source: Scaling ViT (2106.04560), section 3.4; big_vision ``optax.py: scale_by_adafactor``, which is optax's
``scale_by_factored_rms`` followed by its ``ema`` without debiasing. Original: Shazeer and Stern (1804.04235).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.scaled import AdafactorConfig
from pretrain.optim.elementwise import decay_of
from pretrain.optim.factored import View, factored_axes
from pretrain.optim.owned import CompleteRule, State

EPSILON = 1e-30  # added to squared gradients


class Adafactor(CompleteRule):
    """Adafactor's update of a complete tensor.

    The second moment's decay rate is ``min(beta2_cap, 1 - t ** -beta2_power)`` at update t = 1, 2, … The momentum is
    the average of scaled gradients; the update uses it before rounding to ``momentum_dtype``.

    Args:
        config: the settings.
        views: name → how the parameter is seen (see ``factored.views_of``).
    """

    def __init__(self, config: AdafactorConfig, views: Mapping[str, View]) -> None:
        self._config, self._views = config, views
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.momentum_dtype]

    def new_state(self, name: str, tensor: Tensor) -> State:
        """See ``CompleteRule.new_state``."""
        momentum = torch.zeros(tensor.shape, dtype=self._dtype, device=tensor.device)
        state = {"step": torch.zeros(()), "exp_avg": momentum}
        view = self._views[name]
        axes = factored_axes(view)
        if axes is None:
            return state | {"exp_avg_sq": tensor.new_zeros(tensor.shape)}
        row, column = axes
        rows, columns = list(view), list(view)
        rows[column] = columns[row] = 1
        return state | {"exp_avg_sq_row": tensor.new_zeros(rows), "exp_avg_sq_col": tensor.new_zeros(columns)}

    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """See ``CompleteRule.change``."""
        state["step"] += 1
        keep = min(self._config.beta2_cap, 1.0 - float(state["step"]) ** -self._config.beta2_power)
        scaled = self._scaled(grad.reshape(self._views[name]), state, 1.0 - keep).view_as(grad)
        stored, momentum = state["exp_avg"], self._config.momentum
        average = stored.float().mul_(decay_of(stored, momentum)).add_(scaled, alpha=1.0 - momentum)
        stored.copy_(average)
        return average * -group["lr"]

    def _scaled(self, grad: Tensor, state: State, weight: float) -> Tensor:
        """Updates the second moment with ``weight`` and returns the gradient divided by its root."""
        square, axes = grad.square().add_(EPSILON), factored_axes(tuple(grad.shape))
        if axes is None:
            second = state["exp_avg_sq"].view_as(grad).lerp_(square, weight)
            return grad * second.rsqrt()
        row, column = axes
        rows = state["exp_avg_sq_row"].lerp_(square.mean(column, keepdim=True), weight)
        columns = state["exp_avg_sq_col"].lerp_(square.mean(row, keepdim=True), weight)
        return grad * (rows / rows.mean(row, keepdim=True)).rsqrt() * columns.rsqrt()
