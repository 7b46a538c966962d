"""Cross-entropy with one label per image, or with the class shares from mixing.

Legend: B images · K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import DataError
from pretrain.objectives.protocol import MicroBatch, Model


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy averaged over the images, with ``label_smoothing`` of the target spread over all classes.

    Smoothing the mixture equals mixing smoothed labels, as in timm, since both are linear.
    """

    label_smoothing: float = 0.0

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar.

        Raises:
            DataError: the set has images with more than one label.
        """
        return self.loss(model(batch.images, batch.drop_path).float(), batch)

    def loss(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """The loss of fp32 logits (B, K).

        Raises:
            DataError: the set has images with more than one label.
        """
        if batch.labels.shape[1] != 1:
            raise DataError(
                f"objective.name: softmax takes one label per image, but images of this set have up to "
                f"{batch.labels.shape[1]}; use objective.name: sigmoid, or pack the set with single labels"
            )
        targets = batch.labels[:, 0] if batch.targets is None else batch.targets
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
