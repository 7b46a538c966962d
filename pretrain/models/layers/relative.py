"""Position embeddings inside attention, as a term added to its logits.

Legend: B images · N patch tokens of a grid (h, w) · F prefix tokens · T = F + N · A heads · E head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.variants import ViTShape, num_relative_rows

Grid = tuple[int, int]


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
