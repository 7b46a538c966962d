"""Losses of labels: softmax cross-entropy with one label per image, binary cross-entropy with any number of them.

Legend: B images · M most labels of an image · K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import DataError
from pretrain.objectives.protocol import MicroBatch, Model

Weights = tuple[float, ...]


@lru_cache(maxsize=16)
def _on_device(weights: Weights, device: torch.device) -> Tensor:
    """Weights (K,), fp32. Cached per device: a copy from the host in every step would wait for the device."""
    return torch.tensor(weights, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy averaged over the images, with ``label_smoothing`` of the target spread over all classes.

    ``class_weights`` multiply the terms of their classes as in torch, except that the mean is over the images and not
    over their weights: it would depend on how a batch is divided among ranks and passes.

    Smoothing the mixture equals mixing smoothed labels, as in timm, since both are linear.
    """

    label_smoothing: float = 0.0
    class_weights: Weights | None = None

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar.

        Raises:
            DataError: the set has images with more than one label.
        """
        return self.loss(model(batch.images, batch.drop_path, **batch.options).float(), batch)

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
        if self.class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        weights = _on_device(self.class_weights, logits.device)
        smoothing = self.label_smoothing
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / len(logits)


@dataclass(frozen=True)
class Sigmoid:
    """Binary cross-entropy of each class with its target (0, 1, or a share after mixing), averaged over the images.

    ``sum_classes`` sums over the classes (Source: google-research/big_vision, utils.sigmoid_xent); ``mean`` averages
    over them (Source: DeiT III, 2204.07118, and torch's default). ``binarise`` turns every share above 0 into 1
    (Source: DeiT III, section 3.1, and its code, ``targets.gt(0)``). ``label_smoothing`` ε moves targets towards 1/2,
    by ε (Source: Keras, BinaryCrossentropy). ``pos_weight`` multiplies the loss of a class where it is present (Source:
    torch's BCEWithLogitsLoss).
    Differs: written as softplus(x) − x·y. torch's binary_cross_entropy_with_logits subtracts nearly equal numbers where
    y = 0 and x is very negative: at a head bias of −10 over 21,843 classes its loss is 0.008 too large.
    """

    reduction: Literal["sum_classes", "mean"] = "sum_classes"
    binarise: bool = False
    label_smoothing: float = 0.0
    pos_weight: Weights | None = None

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        logits = model(batch.images, batch.drop_path, **batch.options).float()
        targets = dense_targets(batch.labels, logits.shape[1]) if batch.targets is None else batch.targets
        if self.binarise:
            targets = (targets > 0).to(targets.dtype)
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.softplus(logits) - logits * targets
        if self.pos_weight is not None:
            extra = _on_device(self.pos_weight, logits.device) - 1
            losses = losses + extra * targets * F.softplus(-logits)
        return losses.mean() if self.reduction == "mean" else losses.sum() / len(logits)


def dense_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Multi-hot targets: 1 at each label of an image, 0 elsewhere; a repeated label counts once.

    Args:
        labels: int64 (B, M), padded with −1.
        num_classes: K.

    Returns:
        fp32 (B, K) on the labels' device.
    """
    padded = torch.where(labels < 0, num_classes, labels)  # padding goes to an extra column that is dropped
    targets = torch.zeros(len(labels), num_classes + 1, dtype=torch.float32, device=labels.device)
    return targets.scatter_(1, padded, 1.0)[:, :num_classes]
