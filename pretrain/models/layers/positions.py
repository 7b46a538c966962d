"""Position embeddings: added to tokens, rotating queries and keys, or a term in the logits of attention.

Fixed tables are not stored in buffers but computed on the device in each forward pass, in fp32, from a few hundred
numbers. They are unaffected by casts to bfloat16, the meta device and sharding, and another grid needs no surgery.

Legend: B images · N patch tokens of a grid (h, w) · F prefix tokens · T = F + N · D width · A heads · E head width ·
L blocks.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.head import without_autocast
from pretrain.models.layers.places import Places
from pretrain.models.tensor_shapes import mixed_rope_shape, num_relative_rows
from pretrain.models.variants import ViTShape, rope_temperature

Grid = tuple[int, int]
_TEMPERATURE = 10_000.0


# ── added to tokens ──


def add_positions(x: Tensor, positions: Tensor | nn.Module | None) -> Tensor:
    """Adds a position embedding to tokens.

    Args:
        x: (B, T, D).
        positions: a table of T rows or, for the patches only, N rows, (1 or B, ·, D); a module that adds its own; or
            None.

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

    def forward(self, x: Tensor, places: Places | None = None) -> Tensor:
        """Adds the positions to x (B, T, D), or those of images with their own places."""
        if places is not None:
            with without_autocast(x.device):
                pairs = ((places.rows, self.row), (places.columns, self.column))
                joined = torch.cat([axis.weights(table.shape[1]) @ table[0].float() for axis, table in pairs], dim=-1)
            return add_positions(x, joined.to(x.dtype))
        (_, height, half), width = self.row.shape, self.column.shape[1]
        rows = self.row[:, :, None].expand(1, height, width, half)
        columns = self.column[:, None].expand(1, height, width, half)
        return add_positions(x, torch.cat([rows, columns], dim=-1).flatten(1, 2))


def learned_table(
    kind: Literal["learned_1d", "learned_2d"], grid: Grid, dim: int, num_rows: int
) -> nn.Parameter | nn.Module:
    """One learned table: (1, num_rows, D) for 1-D; two half tables for 2-D."""
    return Learned2d(grid, dim) if kind == "learned_2d" else nn.Parameter(torch.zeros(1, num_rows, dim))


def table_at(table: Tensor, grid: Grid, places: Places) -> Tensor:
    """The learned table of ``grid``, (1, · + N, D), for images of other grids: (B, · + N, D) in its type.

    Rows before those of the patches are repeated for each image.
    """
    prefix, patches = table[0].split([table.shape[1] - math.prod(grid), math.prod(grid)])
    with without_autocast(table.device):
        resampled = places.resampled(patches, grid).to(table.dtype)
    return torch.cat([prefix.expand(len(resampled), -1, -1), resampled], dim=1)


def sincos_2d(kind: str, grid: Grid, dim: int, device: torch.device, places: Places | None = None) -> Tensor:
    """Sines and cosines of the row and the column of each patch at D/4 frequencies, fp32 (1, N, D).

    Of images with their own ``places`` instead of ``grid`` (B, N, D).

    ``big_vision``: frequencies T^(−k / (D/4 − 1)); [sin x, cos x, sin y, cos y]. Source: google-research/big_vision,
    models/vit.py, posemb_sincos_2d (from MoCo v3).
    ``timm``: frequencies T^(−k / (D/4)); [sin y, sin x, cos y, cos x]. Source: timm.layers.build_sincos2d_pos_embed.
    ``mae``: frequencies T^(−k / (D/4)); [sin x, cos x, sin y, cos y]. Source: MAE (2111.06377) and its code.
    T = 10,000 and k = 0 … D/4 − 1 in all.

    Args:
        kind: of ``model.pos_embed``, after ``sincos2d_``.
        grid: (h, w) of the patches.
        dim: D.
        device: of the result.
    """
    quarter = dim // 4
    last = max(quarter - 1, 1) if kind == "big_vision" else quarter
    y, x = _angles(_coordinates(grid, None, device, places), quarter, last, _TEMPERATURE)
    order = (y.sin(), x.sin(), y.cos(), x.cos()) if kind == "timm" else (x.sin(), x.cos(), y.sin(), y.cos())
    table = torch.cat(order, dim=-1)
    return table[None] if places is None else table


# ── rotating queries and keys ──


def axial_rotary(model: ModelConfig, shape: ViTShape, device: torch.device, places: Places | None = None) -> Tensor:
    """Cosines and sines that rotate queries and keys: fp32 (2, T, E), of images with their own places (2, B, 1, T, E).

    The first half of the channels turns with the row, the second with the column, each pair of neighbouring channels
    at one of E/4 frequencies. Class and distillation tokens are not turned, nor are registers, unless they have a
    temperature of their own: then they are the places of a square grid.

    Source: RoFormer (2104.09864), equation 34, on two axes as in EVA-02 (2303.11331); equal to timm's
    RotaryEmbeddingCat with in_pixels=False. With ``rope_grid`` (EVA's ref_feat_shape) positions are scaled so that the
    grid spans that one. Registers: ViT-5 (2602.08071) and its code.
    """
    head_dim = shape.embed_dim // shape.num_heads
    patches = _coordinates(shape.grid, model.rope_grid, device, places)
    angles = _axial_angles(patches, head_dim, rope_temperature(model))
    if model.rope_register_temperature is not None:
        side = math.isqrt(model.num_registers)
        grid = _coordinates((side, side), None, device)
        registers = _axial_angles(grid, head_dim, model.rope_register_temperature)
        angles = torch.cat([registers.expand(*angles.shape[:-2], -1, -1), angles], dim=-2)
    num_tokens = shape.num_prefix_tokens + patches[0].shape[-1]
    rotary = _cos_and_sin(angles, num_tokens, dim=0)
    return rotary if places is None else rotary.unsqueeze(2)


class MixedRope(nn.Module):
    """Learned frequencies of row and column for each pair of channels, each head and each block.

    ``freqs`` is (2, L, A, E/2): of the column, then of the row, as in timm's RotaryEmbeddingMixed (grid_indexing "xy").

    Source: Heo et al., "Rotary Position Embedding for Vision Transformer" (2403.13298), section 3.2.
    """

    def __init__(self, model: ModelConfig, shape: ViTShape) -> None:
        super().__init__()
        self.reference = model.rope_grid
        self.freqs = nn.Parameter(torch.zeros(mixed_rope_shape(shape)))

    def forward(self, like: Tensor, shape: ViTShape) -> Tensor:
        """Cosines and sines for the grid of ``shape``, on the device of ``like``: fp32 (L, 2, A, T, E)."""
        rows, columns = _coordinates(shape.grid, self.reference, like.device)
        by_column, by_row = self.freqs.float()[..., None, :].unbind(0)  # each (L, A, 1, E/2)
        angles = columns[:, None] * by_column + rows[:, None] * by_row
        return _cos_and_sin(angles.repeat_interleave(2, dim=-1), shape.num_tokens, dim=1)


def _axial_angles(coordinates: tuple[Tensor, Tensor], head_dim: int, temperature: float) -> Tensor:
    quarter = head_dim // 4
    y, x = _angles(coordinates, quarter, quarter, temperature)
    return torch.cat([y, x], dim=-1).repeat_interleave(2, dim=-1)


def _cos_and_sin(angles: Tensor, num_tokens: int, dim: int) -> Tensor:
    """Of angles (…, N, E), stacked in front of axis ``dim``; prefix tokens without angles are not turned."""
    parts = [_with_prefix_rows(angles.cos(), num_tokens, 1.0), _with_prefix_rows(angles.sin(), num_tokens, 0.0)]
    return torch.stack(parts, dim=dim)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turns each pair of channels of x (B, A, T, E) by its token's angle; computed in fp32, in the type of x.

    Args:
        x: queries or keys.
        rotary: cosines and sines, (2, T, E), (2, A, T, E) where heads differ, or (2, B, 1, T, E) where images do.
    """
    cos, sin = rotary.unbind(0)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def _angles(
    coordinates: tuple[Tensor, Tensor], num_frequencies: int, last: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Row and column of each patch times T^(−k / last): two fp32 (…, N, num_frequencies)."""
    rows, columns = coordinates
    exponents = torch.arange(num_frequencies, device=rows.device, dtype=torch.float32) / last
    frequencies = 1.0 / temperature**exponents
    return rows[..., None] * frequencies, columns[..., None] * frequencies


def _coordinates(
    grid: Grid, reference: Grid | None, device: torch.device, places: Places | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, scaled so that the grid spans ``reference``: two fp32 (N,), or (B, N) of places."""
    if places is not None:
        height, width = (None, None) if reference is None else reference
        return places.rows.coordinates(height), places.columns.coordinates(width)
    scale = (1.0, 1.0) if reference is None else (reference[0] / grid[0], reference[1] / grid[1])
    rows = torch.arange(grid[0], device=device, dtype=torch.float32) * scale[0]
    columns = torch.arange(grid[1], device=device, dtype=torch.float32) * scale[1]
    return rows[:, None].expand(grid).flatten(), columns[None].expand(grid).flatten()


# ── a term in the logits of attention ──


class RelativeBias(nn.Module):
    """A learned number per head and 2-D offset of query and key.

    Rows of the table: (2h − 1)(2w − 1) offsets of patches, row-major; then prefix → patch, patch → prefix, and
    prefix → prefix, which all prefix tokens share.

    Source: Swin (2103.14030), section 3.2, and BEiT for the class token; equal to timm's RelPosBias.
    """

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.grid, self.num_prefix_tokens = shape.grid, shape.num_prefix_tokens
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_relative_rows(shape), shape.num_heads))

    def forward(self, like: Tensor) -> Tensor:
        """The term (1, A, T, T), on the device and in the type of ``like``."""
        index = relative_index(self.grid, self.num_prefix_tokens, like.device)
        bias = self.relative_position_bias_table[index.flatten()].reshape(*index.shape, -1)
        return bias.permute(2, 0, 1)[None].to(like.dtype).contiguous()


def relative_index(grid: Grid, num_prefix_tokens: int, device: torch.device) -> Tensor:
    """Row of the table for each query (first) and key (second): int64 (T, T)."""
    height, width = grid
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    row_offset = rows[:, None] - rows[None] + height - 1
    column_offset = columns[:, None] - columns[None] + width - 1
    patches = row_offset * (2 * width - 1) + column_offset
    if not num_prefix_tokens:
        return patches
    num_offsets, num_patches = (2 * height - 1) * (2 * width - 1), height * width
    from_prefix = torch.full((num_prefix_tokens, num_patches), num_offsets, device=device)
    to_prefix = torch.full((num_patches, num_prefix_tokens), num_offsets + 1, device=device)
    among = torch.full((num_prefix_tokens, num_prefix_tokens), num_offsets + 2, device=device)
    return torch.cat([torch.cat([among, from_prefix], dim=1), torch.cat([to_prefix, patches], dim=1)])


class RelativeKeys(nn.Module):
    """A learned key per 1-D offset p_q − p_k of two tokens: its product with the query is added to the logits.

    Row p_q − p_k + T − 1 of (2T − 1, E), shared by the heads. The tokens are numbered by their place in the sequence,
    prefix first.

    Source: ViT (2010.11929), D.4, relative positional embeddings; Shaw et al. (1803.02155), equation 4.
    """

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.relative_keys = nn.Parameter(torch.zeros(2 * shape.num_tokens - 1, shape.embed_dim // shape.num_heads))

    def forward(self, q: Tensor) -> Tensor:
        """The term (B, A, T, T) of the queries (B, A, T, E), scaled by 1 / √E as the logits are."""
        tokens, head_dim = q.shape[-2:]
        by_offset = (q / math.sqrt(head_dim)) @ self.relative_keys.T.to(q.dtype)  # (B, A, T, 2T − 1)
        position = torch.arange(tokens, device=q.device)
        index = position[:, None] - position[None] + tokens - 1
        return by_offset.gather(-1, index.expand(*q.shape[:-1], tokens))


def relative_term(model: ModelConfig, shape: ViTShape) -> nn.Module | None:
    """The module that computes the term of ``model.pos_embed``, or None for kinds that act elsewhere."""
    if model.pos_embed == "relative_bias":
        return RelativeBias(shape)
    return RelativeKeys(shape) if model.pos_embed == "relative_1d" else None
