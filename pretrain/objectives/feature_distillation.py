"""Imitation of a frozen teacher's features or patch tokens, without labels.

The student's head is the projection to the teacher's width, on the pooled features or on every patch token: one dense
layer, or two with a tanh between them (``model.representation_size``). It is trained and saved with the student, and is
not part of the weights that are kept.

Legend: B images · C H W · D width of the teacher's features · h, w patches of the student · h', w' of the teacher.
Source: AM-RADIO (2312.06709), section 3.3: the cosine for summary features, cosine and smooth L1 for patch tokens, a
projection per teacher, and bilinear interpolation between the grids.
Differs: AM-RADIO's projection has layer norm and GELU, and its loss of tokens is 0.9 · cosine + 0.1 · smooth L1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.protocol import MicroBatch, Model

Imitation = Literal["cosine", "smooth_l1"]


@dataclass(frozen=True)
class FeatureDistillation:
    """The difference between the student's outputs (B, D) and the teacher's features.

    The teacher sees the second view of each image where there is one.

    Attributes:
        teacher: normalised images (B, C, H, W) → fp32 features (B, D), without gradients.
        imitation: cosine: 1 − cos(output, feature), averaged over the images. smooth_l1: the Huber loss divided by
            ``beta``, averaged over images and channels (torch's ``smooth_l1_loss``).
        beta: difference above which the Huber loss is linear.
    """

    teacher: Callable[[Tensor], Tensor]
    imitation: Imitation = "cosine"
    beta: float = 1.0

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        outputs = model(batch.images, batch.drop_path, **batch.options).float()
        shown = batch.images if batch.second is None else batch.second
        return difference(outputs, self.teacher(shown), self.imitation, self.beta)


@dataclass(frozen=True)
class TokenDistillation:
    """As ``FeatureDistillation``, for every patch of the student's grid: outputs (B, D, h, w).

    Attributes:
        teacher: normalised images (B, C, H, W) → fp32 patch tokens (B, D, h', w'), without gradients. On another grid
            than the student's they are interpolated bilinearly between the patches' centres.
        imitation, beta: see ``FeatureDistillation``; all images have the same number of patches.
    """

    teacher: Callable[[Tensor], Tensor]
    imitation: Imitation = "cosine"
    beta: float = 1.0

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        outputs = model(batch.images, batch.drop_path, **batch.options).float()
        tokens = self.teacher(batch.images)
        if tokens.shape[2:] != outputs.shape[2:]:
            tokens = F.interpolate(tokens, outputs.shape[2:], mode="bilinear", align_corners=False)
        return difference(outputs, tokens, self.imitation, self.beta)


@dataclass(frozen=True)
class FeatureAndTokenDistillation:
    """The loss of the features plus ``token_weight`` times that of the tokens, of outputs (B, D, 1 + h·w).

    Attributes:
        teacher: normalised images (B, C, H, W) → fp32 features (B, D) and patch tokens (B, D, h', w').
        grid: (h, w) of the student.
        imitation, beta: see ``FeatureDistillation`` and ``TokenDistillation``.
        token_weight: of the tokens' loss.
    """

    teacher: Callable[[Tensor], tuple[Tensor, Tensor]]
    grid: tuple[int, int]
    imitation: Imitation = "cosine"
    beta: float = 1.0
    token_weight: float = 1.0

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        outputs = model(batch.images, batch.drop_path, **batch.options).float()
        features, tokens = self.teacher(batch.images)
        if tokens.shape[2:] != self.grid:
            tokens = F.interpolate(tokens, self.grid, mode="bilinear", align_corners=False)
        of_features = difference(outputs[:, :, 0], features, self.imitation, self.beta)
        return of_features + self.token_weight * difference(
            outputs[:, :, 1:], tokens.flatten(2), self.imitation, self.beta
        )


def difference(outputs: Tensor, features: Tensor, imitation: Imitation, beta: float) -> Tensor:
    """The mean difference of two tensors (B, D, …) whose second dimension is the channels, an fp32 scalar."""
    if imitation == "cosine":
        return 1.0 - F.cosine_similarity(outputs, features, dim=1).mean()
    return F.smooth_l1_loss(outputs, features, beta=beta)
