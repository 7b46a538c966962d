"""Masked autoencoding: reconstructs the pixels of the patches that the encoder does not see, without labels.

Which patches it sees is a function of (seed, slot), as for ``model.patch_drop`` in general.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (2111.06377), and its code.

Legend: B images · C H W · N patches of a grid (h, w) · K of them kept · P = p · q · C numbers of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.variants import ViTShape
from pretrain.objectives.masked_patches import to_device
from pretrain.objectives.protocol import MicroBatch, Model

EPSILON = 1e-6  # added to the variance of a patch


@dataclass(frozen=True)
class MaskedAutoencoding:
    """Mean squared error of the pixels of hidden patches, averaged over them and the images.

    Attributes:
        shape: of the encoder; its ``num_kept`` patches of each image are seen.
        seed: the experiment's.
        normalised_pixels: the target is each patch minus its mean, divided by its standard deviation.
    """

    shape: ViTShape
    seed: int
    normalised_pixels: bool = True

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        kept = self._chosen(batch) if batch.kept is None else batch.kept
        predictions = model(batch.images, batch.drop_path, kept=kept).float()
        target = pixels_of(batch.images.float(), self.shape.patch)
        if self.normalised_pixels:
            variance, mean = torch.var_mean(target, dim=2, keepdim=True)
            target = (target - mean) / (variance + EPSILON).sqrt()
        errors = (predictions - target).square().mean(2)
        hidden = torch.ones_like(errors).scatter(1, kept, 0.0)
        return (errors * hidden).sum() / (errors.numel() - kept.numel())

    def _chosen(self, batch: MicroBatch) -> Tensor:
        """The patches of a batch that was made for evaluation, such as the probe batch of a checkpoint."""
        assert batch.slots is not None, "masks are functions of the slots"
        kept = kept_patches(batch.slots.numpy(), self.shape, seed=self.seed)
        assert kept is not None, "the config is checked for patches to reconstruct"
        return to_device(kept.numpy(), batch.images.device)


def pixels_of(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """The pixels of each patch, (B, N, P): patches row by row, and in each its rows, columns and channels."""
    cut = images.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))  # (B, C, h, p, w, q)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
