"""Semantic segmentation: cross-entropy of every pixel with its class.

Legend: B images · H, W pixels · K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pretrain.config.target import IGNORED_PIXEL
from pretrain.objectives.protocol import MicroBatch, Model


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
