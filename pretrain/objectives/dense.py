"""Losses of targets other than labels: vectors of numbers (a position, an age, a distance), and masks.

Legend: B images · D numbers of a vector · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pretrain.config.schema.data import IGNORED_PIXEL
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
        outputs = model(batch.images, batch.drop_path, **batch.options).float()
        return self._losses[self.loss](outputs, self.scale.standardised(batch.targets))

    @property
    def _losses(self) -> dict[Loss, Callable[[Tensor, Tensor], Tensor]]:
        return {
            "mse": F.mse_loss,
            "l1": F.l1_loss,
            "smooth_l1": lambda outputs, targets: F.smooth_l1_loss(outputs, targets, beta=self.beta),
        }


@dataclass(frozen=True)
class Segmentation:
    """Cross-entropy summed over the pixels that have a class, divided by B · H · W.

    Pixels without a class (255) count as 0, so that the mean over the images does not depend on how they are divided
    among ranks and passes. A mean over the labelled pixels would.

    Source: mmsegmentation, CrossEntropyLoss with its default ``avg_non_ignore=False``.
    """

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        assert batch.targets is not None, "the set has masks"
        logits = model(batch.images, batch.drop_path).float()
        losses = F.cross_entropy(logits, batch.targets.long(), ignore_index=IGNORED_PIXEL, reduction="sum")
        return losses / batch.targets.numel()
