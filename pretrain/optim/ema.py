"""EMA (Polyak averaging) of sharded weights: each rank averages the fp32 storage that it holds, without communication.

After every applied update, ``average ← decay × average + (1 − decay) × weight``, starting at the initial weights,
without debiasing.

Source: Polyak and Juditsky (1992), as the exponential moving average of the ViT paper (2010.11929, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ShardedEMA:
    """The EMA of fp32 tensors: a rank's flat partitions or its unsharded parameters.

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
        """Swaps weights and averages in place; calling it again restores them bit for bit."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)
