"""A Vision Transformer that gives logits for every pixel: semantic segmentation by a linear head on the patch tokens.

Each patch token, after the final norm, is mapped to K logits by one dense layer; the grid of logits is interpolated to
the image. Class, register and other tokens take part in attention only.

Legend: B images · C H W · N patch tokens of a grid (h, w) · D width · T tokens with prefix · K classes.
Source: DINOv2 (2304.07193), section 7.4, "linear"; the same head is BEiT's (2106.08254) without its deconvolutions.
Differs: DINOv2 puts a batch norm before the layer; the tokens are normed here already.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pretrain.models.layers.precision import without_autocast
from pretrain.models.vit import VisionTransformer


class DenseTransformer(VisionTransformer):
    """A Vision Transformer with ``model.head: dense``."""

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """fp32 logits (B, K, H, W) of normalised images (B, C, H, W)."""
        return self.upsampled(self.patch_logits(self.forward_features(images, drop_path)))

    def patch_logits(self, tokens: Tensor) -> Tensor:
        """fp32 logits of every patch in its place, (B, K, h, w), from tokens (B, T, D)."""
        with without_autocast(tokens.device):
            patches = self.fc_norm(tokens[:, self.shape.num_prefix_tokens :].float())
            return self.head(patches).transpose(1, 2).unflatten(2, self.shape.grid)

    def upsampled(self, logits: Tensor) -> Tensor:
        """Logits of the grid (B, K, h, w) at every pixel, (B, K, H, W): bilinear between the patches' centres."""
        with without_autocast(logits.device):
            return F.interpolate(logits, self.shape.img_size, mode="bilinear", align_corners=False)
