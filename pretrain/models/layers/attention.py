"""Multi-head self-attention.

Legend: B images · T tokens · D width · A heads · E head width (D = A·E).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.layers.dropout import dropout
from pretrain.models.layers.pos_embed import rotate
from pretrain.models.layers.precision import LayerNorm


class Attention(nn.Module):
    """Softmax(q kᵀ / √E + bias) v over A heads, with one fused projection for q, k and v.

    The softmax is inside torch's fused kernel, which accumulates in fp32 for every input type.

    Args:
        dim: D.
        num_heads: A.
        proj_drop: rate of the dropout after the output projection.
        qk_norm_eps: epsilon of the LayerNorm over E of queries and keys; None: they are not normalised.
            Source: ViT-22B (2302.05442), section 2.
        rel_pos: makes the bias from the queries (see ``layers.relative``).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        proj_drop: float = 0.0,
        *,
        qk_norm_eps: float | None = None,
        rel_pos: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        head_dim = dim // num_heads
        self.q_norm = nn.Identity() if qk_norm_eps is None else LayerNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else LayerNorm(head_dim, eps=qk_norm_eps)
        self.rel_pos = rel_pos
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = dropout(proj_drop)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Mixes the tokens of x (B, T, D); the same shape comes out.

        Args:
            x: tokens.
            bias: what all layers add to the logits, (1, A, T, T), or None.
            rotary: cosines and sines (2, T, E) that turn queries and keys, or None.
        """
        q, k, v, bias = self._project(x, bias, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(x.shape)))

    def weights(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """How much each token (rows) takes from each token, which ``forward`` never has in memory: (B, A, T, T)."""
        q, k, _, bias = self._project(x, bias, rotary)
        logits = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5
        return (logits if bias is None else logits + bias.float()).softmax(dim=-1)

    def _project(
        self, x: Tensor, bias: Tensor | None, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values, each (B, A, T, E), and what is added to the logits."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.unbind(2)  # each (B, T, A, E), in whose order attention's output needs no copy
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)  # (B, A, T, E)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.rel_pos is not None:
            bias = self.rel_pos(q)
        return q, k, v, bias
