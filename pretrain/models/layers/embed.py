"""Patch embedding, and position embeddings that are added to tokens or rotate queries and keys.

Fixed tables are not stored in buffers but computed on the device in each forward pass, in fp32, from a few hundred
numbers. They are unaffected by casts to bfloat16, the meta device and sharding, and another grid needs no surgery.

Legend: B images · C H W · P patch side · N patch tokens of a grid (h, w) · F prefix tokens · T = F + N · D width ·
E head width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers.resnet import ResNet
from pretrain.models.variants import NUM_CHANNELS, ViTShape

Grid = tuple[int, int]
_TEMPERATURE = 10_000.0


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
    """The module that makes patch tokens from images: a convolution, or a ResNet before it."""
    if shape.stem_blocks:
        return HybridEmbed(shape.stem_blocks, shape.embed_dim)
    return PatchEmbed(shape.patch, shape.embed_dim)


def add_positions(x: Tensor, positions: Tensor | nn.Module | None) -> Tensor:
    """Adds a position embedding to tokens.

    Args:
        x: (B, T, D).
        positions: a table of T rows or, for the patches only, N rows, (1, ·, D); a module that adds its own; or None.

    Returns:
        (B, T, D); prefix tokens without rows are unchanged.
    """
    if positions is None:
        return x
    if isinstance(positions, nn.Module):
        return positions(x)
    return x + _with_prefix_rows(positions, x.shape[1], 0.0)


def _with_prefix_rows(table: Tensor, num_tokens: int, value: float) -> Tensor:
    missing = num_tokens - table.shape[-2]
    return F.pad(table, (0, 0, missing, 0), value=value) if missing else table


class Learned2d(nn.Module):
    """A learned vector of D/2 per row and one per column, joined for each patch.

    Source: ViT (2010.11929), D.4: "two sets of embeddings are learned, each for one of the axes, each with size D/2".
    Prefix tokens get none: they are learned vectors themselves.
    """

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(1, grid[0], dim // 2))
        self.column = nn.Parameter(torch.zeros(1, grid[1], dim // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the positions to x (B, T, D)."""
        (_, height, half), width = self.row.shape, self.column.shape[1]
        rows = self.row[:, :, None].expand(1, height, width, half)
        columns = self.column[:, None].expand(1, height, width, half)
        return add_positions(x, torch.cat([rows, columns], dim=-1).flatten(1, 2))


def learned_table(
    kind: Literal["learned_1d", "learned_2d"], grid: Grid, dim: int, num_rows: int
) -> nn.Parameter | nn.Module:
    """One learned table: (1, num_rows, D) for 1-D; two half tables for 2-D."""
    return Learned2d(grid, dim) if kind == "learned_2d" else nn.Parameter(torch.zeros(1, num_rows, dim))


def sincos_2d(kind: Literal["big_vision", "timm"], grid: Grid, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of the row and the column of each patch at D/4 frequencies, fp32 (1, N, D).

    ``big_vision``: frequencies T^(−k / (D/4 − 1)); [sin x, cos x, sin y, cos y]. Source: google-research/big_vision,
    models/vit.py, posemb_sincos_2d (from MoCo v3).
    ``timm``: frequencies T^(−k / (D/4)); [sin y, sin x, cos y, cos x]. Source: timm.layers.build_sincos2d_pos_embed.
    T = 10,000 and k = 0 … D/4 − 1 in both.
    """
    quarter = dim // 4
    last = max(quarter - 1, 1) if kind == "big_vision" else quarter
    y, x = _angles(grid, quarter, last, _TEMPERATURE, None, device)
    order = (x.sin(), x.cos(), y.sin(), y.cos()) if kind == "big_vision" else (y.sin(), x.sin(), y.cos(), x.cos())
    return torch.cat(order, dim=-1)[None]


def rotary_2d(
    grid: Grid, num_prefix_tokens: int, head_dim: int, temperature: float, reference: Grid | None, device: torch.device
) -> Tensor:
    """Cosines and sines that rotate queries and keys: fp32 (2, T, E).

    The first half of the channels turns with the row, the second with the column, each pair of neighbouring channels
    at one of E/4 frequencies; prefix tokens are not turned.

    Source: RoFormer (2104.09864), equation 34, on two axes as in EVA-02 (2303.11331); equal to timm's
    RotaryEmbeddingCat with in_pixels=False. With ``reference`` (EVA's ref_feat_shape) positions are scaled so that the
    grid spans that one.
    """
    quarter = head_dim // 4
    y, x = _angles(grid, quarter, quarter, temperature, reference, device)
    angles = torch.cat([y, x], dim=-1).repeat_interleave(2, dim=-1)
    num_tokens = num_prefix_tokens + grid[0] * grid[1]
    return torch.stack(
        [_with_prefix_rows(angles.cos(), num_tokens, 1.0), _with_prefix_rows(angles.sin(), num_tokens, 0.0)]
    )


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turns each pair of channels of x (B, A, T, E) by its token's angle; computed in fp32, in the type of x."""
    cos, sin = rotary.unbind(0)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def _angles(
    grid: Grid, num_frequencies: int, last: int, temperature: float, reference: Grid | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row and column of each patch times T^(−k / last): two fp32 (N, num_frequencies)."""
    exponents = torch.arange(num_frequencies, device=device, dtype=torch.float32) / last
    frequencies = 1.0 / temperature**exponents
    scale = (1.0, 1.0) if reference is None else (reference[0] / grid[0], reference[1] / grid[1])
    rows = torch.arange(grid[0], device=device, dtype=torch.float32) * scale[0]
    columns = torch.arange(grid[1], device=device, dtype=torch.float32) * scale[1]
    y = rows[:, None, None].expand(*grid, 1) * frequencies
    x = columns[None, :, None].expand(*grid, 1) * frequencies
    return y.flatten(0, 1), x.flatten(0, 1)
