"""Regression of vectors of numbers, such as a position, an age or a distance, standardised by the training set.

Legend: B images · D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pretrain.models.metadata import TargetScale
from pretrain.objectives.protocol import MicroBatch, Model

Loss = Literal["mse", "l1", "smooth_l1"]


@dataclass(frozen=True)
class Regression:
    """Mean over images and vector entries of a loss on the standardised error.

    Attributes:
        scale: how the targets are standardised, so that all entries have equal weight whatever their units.
        loss: squared error (mse), absolute error (l1), or Huber loss, quadratic around 0 (smooth_l1).
        beta: for smooth_l1: the error, in standard deviations, above which it is linear.

    Source: smooth_l1: Girshick, "Fast R-CNN" (1504.08083), equation 3, with torch's ``beta``.
    """

    scale: TargetScale
    loss: Loss = "mse"
    beta: float = 1.0

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        assert batch.targets is not None, "the set has vectors"
        outputs = model(batch.images, batch.drop_path).float()
        return self._losses[self.loss](outputs, self.scale.standardised(batch.targets))

    @property
    def _losses(self) -> dict[Loss, Callable[[Tensor, Tensor], Tensor]]:
        return {
            "mse": F.mse_loss,
            "l1": F.l1_loss,
            "smooth_l1": lambda outputs, targets: F.smooth_l1_loss(outputs, targets, beta=self.beta),
        }
