"""Multi-head self-attention.

Legend: B images · T tokens · D width · A heads · E head width (D = A·E).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers.dropout import dropout


class Attention(nn.Module):
    """Softmax(q kᵀ / √E) v over A heads, with one fused projection for q, k and v.

    The softmax is inside torch's fused kernel, which accumulates in fp32 for every input type.
    """

    def __init__(self, dim: int, num_heads: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of x (B, T, D); the same shape comes out."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, A, T, E)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(images, tokens, width)))
