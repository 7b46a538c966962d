"""Self-attention with its options: QK-norm, rotary positions, a term in the logits, a gate on the output.

Legend: B images · T tokens · D width · A heads · E head width (D = A·E).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.mlp import dropout
from pretrain.models.layers.norm import norm_layer
from pretrain.models.layers.positions import rotate
from pretrain.models.variants import ViTShape


class Attention(nn.Module):
    """Softmax(q kᵀ / √E + bias) v over A heads, with one fused projection for q, k and v.

    The softmax is inside torch's fused kernel, which accumulates in fp32 for every input type.

    With ``model.gated_attention``, its result is multiplied by a sigmoid of another projection of the input before the
    output projection. Source: Qiu et al., "Gated Attention for Large Language Models" (2505.06708), equation 5,
    elementwise after attention; names are timm's.

    Args:
        shape: geometry.
        model: of it ``qk_norm`` (ViT-22B, 2302.05442, section 2), ``qkv_bias`` and ``dropout`` of the output.
        rel_pos: computes the bias from the queries (see ``layers.positions``).
    """

    def __init__(self, shape: ViTShape, model: ModelConfig, rel_pos: nn.Module | None = None) -> None:
        super().__init__()
        dim, self.num_heads = shape.embed_dim, shape.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=model.qkv_bias)
        self.q_norm, self.k_norm = qk_norms(shape, model)
        self.rel_pos = rel_pos
        self.gate = nn.Linear(dim, dim, bias=model.qkv_bias) if model.gated_attention else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = dropout(model.dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Mixes the tokens of x (B, T, D); returns the same shape.

        Args:
            x: tokens.
            bias: added to the logits in all layers, (1, A, T, T) or one that expands to (B, A, T, T), or None.
            rotary: cosines and sines that turn queries and keys, (2, …, T, E), or None.
        """
        q, k, v, bias = self._project(x, bias, rotary)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))

    def weights(self, x: Tensor, bias: Tensor | None = None, rotary: Tensor | None = None) -> Tensor:
        """Attention weights of each token (rows) over all tokens, never materialised by ``forward``: (B, A, T, T)."""
        q, k, _, bias = self._project(x, bias, rotary)
        return attention_weights(q, k, bias)

    def _project(
        self, x: Tensor, bias: Tensor | None, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values, each (B, A, T, E), and the term added to the logits."""
        images, tokens, width = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.unbind(2)  # each (B, T, A, E), in whose order attention's output needs no copy
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)  # (B, A, T, E)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if self.rel_pos is not None:
            bias = self.rel_pos(q)
        return q, k, v, bias


def qk_norms(shape: ViTShape, model: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """The norms of queries and keys over E, or two identities."""
    if not model.qk_norm:
        return nn.Identity(), nn.Identity()
    head_dim = shape.embed_dim // shape.num_heads
    return norm_layer(model, head_dim), norm_layer(model, head_dim)


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax of the scaled products, in fp32: (B, A, T, T) of queries and keys (B, A, T, E)."""
    logits = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5
    return (logits if bias is None else logits + bias.float()).softmax(dim=-1)
