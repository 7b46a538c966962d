"""Cuts images into patches and embeds each.

Legend: B images · C H W · P patch side · N patch tokens · D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.models.layers.resnet import ResNet
from pretrain.models.variants import NUM_CHANNELS, ViTShape


class PatchEmbed(nn.Module):
    """A convolution whose kernel equals its stride: each patch's C·P·P values times one (D, C·P·P) matrix."""

    def __init__(self, patch: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(NUM_CHANNELS, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds (B, C, H, W) as (B, N, D), patches in row-major order of the grid."""
        return self.proj(images).flatten(2).transpose(1, 2)


class HybridEmbed(nn.Module):
    """Patches of one pixel of a ResNet's feature map, each embedded by a (D, C) matrix.

    Source: ViT (2010.11929), section 3.1, hybrid architecture.
    """

    def __init__(self, stage_blocks: tuple[int, ...], embed_dim: int) -> None:
        super().__init__()
        self.backbone = ResNet(stage_blocks)
        self.proj = nn.Conv2d(self.backbone.num_features, embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds (B, C, H, W) as (B, N, D), the feature map in row-major order."""
        return self.proj(self.backbone(images)).flatten(2).transpose(1, 2)


def patch_embed(shape: ViTShape) -> PatchEmbed | HybridEmbed:
    """What makes patch tokens from images: a convolution, or a ResNet before it."""
    if shape.stem_blocks:
        return HybridEmbed(shape.stem_blocks, shape.embed_dim)
    return PatchEmbed(shape.patch, shape.embed_dim)
