"""Cuts images into patches and embeds each.

Legend: B images · C H W · P patch side · N patch tokens · D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.models.variants import NUM_CHANNELS


class PatchEmbed(nn.Module):
    """A convolution whose kernel equals its stride: each patch's C·P·P values times one (D, C·P·P) matrix."""

    def __init__(self, patch: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(NUM_CHANNELS, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds (B, C, H, W) as (B, N, D), patches in row-major order of the grid."""
        return self.proj(images).flatten(2).transpose(1, 2)
