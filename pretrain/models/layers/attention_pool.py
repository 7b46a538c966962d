"""Attention pooling: one learned query looks at all patch tokens, and an MLP follows.

Legend: B images · N patch tokens · D width · A heads · E head width (D = A·E).
Source: Scaling ViT (2106.04560), section 3.2 (MAP, from Set Transformer, 1810.00825); names are timm's.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers.mlp import Mlp
from pretrain.models.layers.precision import LayerNorm


class AttentionPool(nn.Module):
    """y = proj(attention(q(latent), kv(x))), then y + mlp(norm(y)): one vector per image."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, gelu: Literal["erf", "tanh"], eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_dim, gelu)

    def forward(self, x: Tensor) -> Tensor:
        """Pools the tokens of x (B, N, D) into (B, D)."""
        images, tokens, width = x.shape
        heads = (self.num_heads, width // self.num_heads)
        q = self.q(self.latent.expand(images, -1, -1)).reshape(images, 1, *heads).transpose(1, 2)
        k, v = self.kv(x).reshape(images, tokens, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, 1, width)
        y = self.proj(pooled)
        return (y + self.mlp(self.norm(y)))[:, 0]
