"""Adafactor as used by Scaling ViT: a second moment factored by rows and columns, and a momentum of scaled gradients.

It needs unsharded tensors: the second moment of a matrix (R, C) is stored as its row means (R, 1) and column means
(1, C). There is no update clipping and no learning rate relative to the weight's size.

Legend: D width · A heads · E head width.
Source: Scaling ViT (2106.04560), section 3.4; big_vision ``optax.py: scale_by_adafactor``, which is optax's
``scale_by_factored_rms`` followed by its ``ema`` without debiasing. Original: Shazeer and Stern (1804.04235).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.optim.elementwise import StatefulOptimizer, decay_of

EPSILON = 1e-30  # added to squared gradients
SMALLEST_FACTORED = 32  # a tensor with fewer than two dimensions of this size has an unfactored second moment

View = tuple[int, ...]  # the first dimension stacks tensors of the remaining shape


class Adafactor(StatefulOptimizer):
    """See the module.

    Args:
        groups: parameter groups.
        lr: peak learning rate.
        momentum: decay rate of the average of scaled gradients.
        momentum_dtype: storage type of that average; the update uses it before rounding.
        beta2_cap, beta2_power: the second moment's decay rate is ``min(cap, 1 - t ** -power)`` at update t = 1, 2, …
        views: views of parameters that combine several of flax's tensors (see ``attention_views``).
    """

    # many: the settings of the published optimiser, and the groups
    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float,
        momentum_dtype: torch.dtype,
        beta2_cap: float,
        beta2_power: float,
        views: Mapping[Tensor, View],
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "beta2_cap": beta2_cap, "beta2_power": beta2_power}
        super().__init__(groups, settings)
        self._momentum_dtype, self._views = momentum_dtype, dict(views)

    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """See ``StatefulOptimizer.new_state``."""
        momentum = torch.zeros_like(tensor, dtype=self._momentum_dtype, memory_format=torch.contiguous_format)
        state = {"step": torch.zeros(()), "exp_avg": momentum}
        view = self._view(tensor)
        axes = factored_axes(view)
        if axes is None:
            return state | {"exp_avg_sq": torch.zeros_like(tensor, memory_format=torch.contiguous_format)}
        row, column = axes
        rows, columns = list(view), list(view)
        rows[column] = columns[row] = 1
        return state | {"exp_avg_sq_row": tensor.new_zeros(rows), "exp_avg_sq_col": tensor.new_zeros(columns)}

    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``."""
        state["step"] += 1
        keep = min(group["beta2_cap"], 1.0 - float(state["step"]) ** -group["beta2_power"])
        scaled = self._scaled(grad.reshape(self._view(tensor)), state, 1.0 - keep).view_as(tensor)
        stored = state["exp_avg"]
        average = stored.float().mul_(decay_of(stored, group["momentum"])).add_(scaled, alpha=1.0 - group["momentum"])
        stored.copy_(average)
        tensor.mul_(1.0 - group["lr"] * group["weight_decay"])
        tensor.add_(average, alpha=-group["lr"])

    def _scaled(self, grad: Tensor, state: dict[str, Tensor], weight: float) -> Tensor:
        """Updates the second moment with ``weight`` and returns the gradient divided by its root."""
        square, axes = grad.square().add_(EPSILON), factored_axes(tuple(grad.shape))
        if axes is None:
            second = state["exp_avg_sq"].view_as(grad).lerp_(square, weight)
            return grad * second.rsqrt()
        row, column = axes
        rows = state["exp_avg_sq_row"].lerp_(square.mean(column, keepdim=True), weight)
        columns = state["exp_avg_sq_col"].lerp_(square.mean(row, keepdim=True), weight)
        return grad * (rows / rows.mean(row, keepdim=True)).rsqrt() * columns.rsqrt()

    def _view(self, tensor: Tensor) -> View:
        return self._views.get(tensor, (1, *tensor.shape))


def factored_axes(view: View) -> tuple[int, int] | None:
    """The two largest dimensions except the first: (rows, columns); None if the second largest is too small."""
    order = sorted(range(1, len(view)), key=lambda axis: view[axis])
    if len(order) < 2 or view[order[-2]] < SMALLEST_FACTORED:
        return None
    return order[-2], order[-1]


def attention_views(model: nn.Module) -> dict[Tensor, View]:
    """Views of attention weights that give them the statistics of flax's kernels.

    Flax stores q, k and v separately, each as (D, A, E), and the projection as (A, E, D), so heads are factored alone.
    torch's ``qkv.weight`` is (3 · A · E, D), ``kv.weight`` (2 · A · E, D), ``q.weight`` (A · E, D) and ``proj.weight``
    (D, A · E).
    """
    views: dict[Tensor, View] = {}
    for module in model.modules():
        heads = getattr(module, "num_heads", None)
        if not isinstance(heads, int):
            continue
        for name, parts in (("qkv", 3), ("kv", 2), ("q", 1), ("proj", 0)):
            layer = getattr(module, name, None)
            if not isinstance(layer, nn.Linear):
                continue
            out, into = layer.weight.shape
            if parts and out % (parts * heads) == 0:
                views[layer.weight] = (parts, heads, out // parts // heads, into)
            elif not parts and into % heads == 0:
                views[layer.weight] = (1, out, heads, into // heads)
    return views
