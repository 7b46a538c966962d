"""Schedule-free AdamW: instead of a decay of the learning rate, an average of the weights.

There are three sets of weights: z takes AdamW's steps, x is the average of all z so far, and gradients are taken at y,
between the two: ``y = beta1 · x + (1 - beta1) · z``. The parameters are y, and z is a state of the optimiser. x is what
is evaluated and exported; it follows from y and z, so the state is as large as AdamW's.

Source: Defazio et al., "The Road Less Scheduled" (2405.15682), algorithm 1. As in Meta's package ``schedulefree``
(1.4.1), the second moment is corrected for its start in the update only, a z counts by the square of the highest
learning rate so far, and the decay is that of y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.schedule_free import ScheduleFreeConfig
from pretrain.optim.elementwise import StatefulOptimizer, WeightAverage, chunks

Z = "z"  # the state


class ScheduleFreeAdamW(StatefulOptimizer, WeightAverage):
    """Schedule-free AdamW. Its parameters are y.

    Args:
        groups: parameter groups.
        config: the settings.
    """

    def __init__(self, groups: list[dict[str, Any]], config: ScheduleFreeConfig) -> None:
        super().__init__(groups, {"lr": config.lr, "betas": config.betas, "eps": config.eps})
        self._to_average = config.own_average
        self._schedule: Callable[[int], float] = lambda update: config.lr
        self._history = (0, 0.0, 0.0)  # updates, their weights together, and the weight of the newest
        self._aside: list[tuple[Tensor, Tensor]] = []

    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """See ``StatefulOptimizer.new_state``."""
        z = tensor.detach().clone(memory_format=torch.contiguous_format)
        return {"step": torch.zeros(()), Z: z, "exp_avg_sq": torch.zeros_like(z)}

    def follow(self, schedule: Callable[[int], float]) -> None:
        """See ``StatefulOptimizer.follow``. Without it the learning rate is taken as constant."""
        self._schedule = schedule

    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``."""
        state["step"] += 1
        count, (beta1, beta2), lr = int(state["step"]), group["betas"], group["lr"]
        share = self._share_of_newest(count)
        for y, slope, z, second in chunks(tensor, grad.contiguous(), state[Z], state["exp_avg_sq"]):
            second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            step = (second / (1 - beta2**count)).sqrt_().add_(group["eps"])
            torch.div(slope, step, out=step).add_(y, alpha=group["weight_decay"])
            y.lerp_(z, share).add_(step, alpha=lr * (beta1 * (1 - share) - 1))
            z.sub_(step, alpha=lr)

    @torch.no_grad()
    def swap(self) -> None:
        """See ``WeightAverage.swap``. Keeps y aside, since computing it from x would not restore it bit for bit."""
        aside, self._aside = self._aside, []
        for tensor, y in aside:
            tensor.data.copy_(y)
        if aside:
            return
        for tensor, state in self.state.items():
            if Z in state:
                self._aside.append((tensor, tensor.detach().clone()))
                tensor.data.lerp_(state[Z], self._to_average)

    def _share_of_newest(self, count: int) -> float:
        """The share of the newest z in the average after a number of updates.

        It follows from the schedule, so a checkpoint need not have it.
        """
        known, total, newest = self._history if self._history[0] <= count else (0, 0.0, 0.0)
        for update in range(known, count):
            newest = max(newest, self._schedule(update) ** 2)
            total += newest
        self._history = count, total, newest
        return newest / total if total else 0.0
