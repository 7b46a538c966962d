"""Updates that treat each weight alone, so that they work on the flat pieces of ZeRO: bf16 moments, and the EMA.

The optimisers here store their first moment in bfloat16. The update uses the moment before rounding. The arithmetic is
fp32 on chunks of ``CHUNK`` elements: the flat partitions are large, and temporaries of their size would cost more than
the smaller state saves.

Source: ``mu_dtype`` of optax's ``scale_by_adam`` and ``accumulator_dtype`` of its ``trace``, as AugReg and big_vision
use them (Scaling ViT, 2106.04560, section 3.4: a bf16 second moment hurts, a bf16 first moment does not). The decay is
also rounded, see ``decay_of``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 24


class WeightAverage(ABC):
    """An average of the weights that can take their place."""

    @abstractmethod
    def swap(self) -> None:
        """Swaps weights and averages in place; calling it again restores the weights bit for bit."""


class StatefulOptimizer(torch.optim.Optimizer, ABC):
    """An optimiser whose state can be created before its first step, so that a checkpoint can be loaded into it."""

    @abstractmethod
    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The initial state of a tensor."""

    @abstractmethod
    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Updates tensor and state in place."""

    def follow(self, schedule: Callable[[int], float]) -> None:
        """Tells the learning rates of the run.

        Args:
            schedule: number of updates before → learning rate; most optimisers need only that of the present update.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            self.update_group(group)

    def update_group(self, group: dict[str, Any]) -> None:
        """Updates every tensor of a parameter group that has a gradient."""
        for tensor in group["params"]:
            if tensor.grad is not None:
                state = self.state[tensor]
                if not state:
                    state.update(self.new_state(tensor))
                self.update(tensor, tensor.grad, state, group)


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields matching chunks of the flattened tensors, which have equal sizes."""
    return zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True)


def decay_of(stored: Tensor, decay: float) -> float:
    """The factor on a stored moment: ``decay`` rounded to the type of the moment.

    JAX converts a Python number to the type of the array operand, so a bfloat16 moment decays by 0.8984375, not 0.9.
    With 0.9 the average would be 1.6 % larger than in the published runs. The product itself is fp32, as XLA computes
    it when the update is compiled.
    """
    return torch.tensor(decay, dtype=stored.dtype).item()


class AdamWBf16(StatefulOptimizer):
    """AdamW with a bfloat16 first moment and an fp32 second one."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """See ``StatefulOptimizer.new_state``."""
        return adamw_state(tensor, torch.bfloat16)

    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``."""
        adamw_update(tensor, grad, state, group)


def adamw_state(tensor: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """AdamW's initial state of a tensor, with a first moment of this type."""
    first = torch.zeros_like(tensor, dtype=dtype)
    return {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": torch.zeros_like(tensor)}


def adamw_update(tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
    """AdamW's update of a tensor and its state in place, with the group's lr, betas, eps and weight_decay."""
    state["step"] += 1
    count, (beta1, beta2), lr = float(state["step"]), group["betas"], group["lr"]
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    for weight, slope, stored, second in chunks(tensor, grad.contiguous(), state["exp_avg"], state["exp_avg_sq"]):
        first = stored.float().mul_(decay_of(stored, beta1)).add_(slope, alpha=1 - beta1)
        stored.copy_(first)
        second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        denominator = (second / correction2).sqrt_().add_(group["eps"])
        weight.mul_(1 - lr * group["weight_decay"])
        weight.addcdiv_(first, denominator, value=-lr / correction1)


class SGDBf16(StatefulOptimizer):
    """SGD with a bfloat16 momentum; weight decay is added to the gradient, as in torch's SGD."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    def new_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """See ``StatefulOptimizer.new_state``."""
        return {"momentum_buffer": torch.zeros_like(tensor, dtype=torch.bfloat16)}

    def update(self, tensor: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``."""
        for weight, slope, stored in chunks(tensor, grad.contiguous(), state["momentum_buffer"]):
            momentum = stored.float().mul_(decay_of(stored, group["momentum"]))
            momentum.add_(slope).add_(weight, alpha=group["weight_decay"])
            stored.copy_(momentum)
            weight.add_(momentum, alpha=-group["lr"])


class ShardedEMA(WeightAverage):
    """EMA (Polyak averaging) of fp32 tensors: a rank's flat partitions or its unsharded parameters, no communication.

    After every applied update, ``average ← decay × average + (1 − decay) × weight``, starting at the initial weights,
    without debiasing.

    Source: Polyak and Juditsky (1992), as the exponential moving average of the ViT paper (2010.11929, section 4.1).

    Args:
        tensors: the weights, which the optimiser updates in place.
        decay: decay rate of the average, in (0, 1).
    """

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self._weights, self._decay = list(tensors), decay
        self._averages = [tensor.detach().clone() for tensor in self._weights]
        self._of = {id(tensor): average for tensor, average in zip(self._weights, self._averages, strict=True)}

    def of(self, tensor: Tensor) -> Tensor:
        """The average of one of the tensors, shaped like it."""
        return self._of[id(tensor)]

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average after an applied update."""
        torch._foreach_lerp_(self._averages, [weight.detach() for weight in self._weights], 1.0 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """See ``WeightAverage.swap``."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)
