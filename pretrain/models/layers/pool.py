"""Pools tokens into one vector per image.

Legend: B images · T tokens with prefix · N patch tokens · D width · A heads · E head width (D = A·E).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers.block import Mlp
from pretrain.models.layers.precision import LayerNorm

Pool = Literal["token", "norm_avg", "avg_norm", "map"]


def pool_tokens(tokens: Tensor, pool: Pool, num_prefix_tokens: int) -> Tensor:
    """The class token, or the mean of the patch tokens (without the prefix), in fp32: (B, T, D) → (B, D)."""
    assert pool != "map", "attention pooling is a module of its own"
    if pool == "token":
        return tokens[:, 0].float().contiguous()  # a view would keep all T tokens for the head's backward pass
    return tokens[:, num_prefix_tokens:].mean(dim=1, dtype=torch.float32)


class AttentionPool(nn.Module):
    """One learned query attends to all patch tokens: y = proj(attention(q(latent), kv(x))), then y + mlp(norm(y)).

    Source: Scaling ViT (2106.04560), section 3.2 (MAP, from Set Transformer, 1810.00825); names are timm's.
    """

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
